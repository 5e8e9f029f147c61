"""docs/data.md: its commands and Python run in one empty folder, its settings are read, and none is missing."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import yaml

from qwen_align.align.commands.build import BuildSpec
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.recipe_file import load_variants
from qwen_align.data_builders import BANDS, Builder
from qwen_align.data_builders.column_mapping import FIELDS
from qwen_align.data_builders.contamination import Contamination
from qwen_align.data_builders.format_recognition import FORMATS
from qwen_align.data_builders.pair_matching import Rule
from qwen_align.data_builders.row_conversion import Conversion
from qwen_align.data_builders.sieve import Sieve

DOC = Path(__file__).parents[1] / "docs" / "data.md"
TEXT = DOC.read_text(encoding="utf-8")


class Block(NamedTuple):
    kind: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)]
FIRST_SFT = [
    block.text for block in BLOCKS if block.kind == "sh" and block.text in TEXT.partition("## A first SFT")[2]
][:1]
SETTINGS = [yaml.safe_load(block.text) for block in BLOCKS if block.kind == "yaml"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every `sh` and `python` block but that of the first SFT has run, from top to bottom."""
    made, said = tmp_path_factory.mktemp("docs_data"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for block in BLOCKS:
            if block.kind == "sh" and block.text not in FIRST_SFT:
                said.append(run_commands(block.text))
            elif block.kind == "python":
                run_python(block.text)
    (made / "said.txt").write_text("".join(said), encoding="utf-8")
    return made


def run_commands(text: str) -> str:
    """Runs the block in the current folder and returns what it prints."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-c", text]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(text: str) -> None:
    """Runs the block; what an expression gives has to hold what the comment behind it says."""
    known: dict[str, object] = {}
    for node in ast.parse(text).body:
        line = ast.get_source_segment(text, node) or ""
        if isinstance(node, ast.Expr):
            given = eval(line, known)
            _, mark, said = text.splitlines()[(node.end_lineno or 1) - 1].partition("  # ")
            assert mark, f"{line}: what does it give?"
            shown = given if isinstance(given, str) else repr(given)
            assert said.strip("…") in shown, f"{line} gives {shown}"
        else:
            exec(line, known)


def test_every_kind_of_block_is_known() -> None:
    assert {block.kind for block in BLOCKS} == {"sh", "python", "yaml"}


def test_the_commands_do_what_the_page_says(folder: Path) -> None:
    said = (folder / "said.txt").read_text(encoding="utf-8")
    assert "1 rows written: data/train" in said
    reasons = re.findall(r'"reason": "([^"]*)"', (folder / "data" / "train" / "dropped.jsonl").read_text())
    assert sorted(reasons) == ["contaminated: held_out, same_words", "duplicate", "unusable gold"]
    assert "«<think>" in said
    assert "| openai/gsm8k | mit | 1 |" in (folder / "data" / "train" / "README.md").read_text()


@pytest.mark.slow(seconds=50)
def test_a_first_sft_on_each_of_four_files_is_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = FIRST_SFT
    said = run_commands(block)
    # check, then a run a file: conversations have a sample an answer, calls of tools are answers too
    assert re.findall(r"samples (\d+)", said) == ["3", "3", "2", "3", "2"]
    assert "answers by mode: 3 no_think (enable_thinking=False)" in said
    assert "dropped" not in said
    assert "<think>⏎\n⏎\n</think>⏎\n⏎\n«Paris.<|im_end|>»" in said
    assert "no_think > " in said


def next_key(settings: dict[str, Any]) -> str:
    return next(iter(settings))


def test_the_stages_are_together_one_recipe(tmp_path: Path) -> None:
    stages = [stage for settings in SETTINGS if isinstance(settings, list) for stage in settings]
    path = tmp_path / "recipe.yaml"
    whole = {"name": "page", "models": {"base": {"shipped": "tiny_base"}}, "stages": stages}
    path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    (variant,) = load_variants(path)
    assert len(variant.recipe.stages) == len(stages) > 20
    shown = {stage.builder.kind for stage in variant.recipe.stages if isinstance(stage, BuildData)}
    assert shown == set(kinds())


@pytest.mark.parametrize("settings", [one for one in SETTINGS if isinstance(one, dict)], ids=next_key)
def test_the_other_settings_are_those_of_a_stage(settings: dict[str, Any]) -> None:
    builder = {"kind": "local_file", "path": "rows.jsonl"}
    assert BuildSpec.model_validate({"kind": "build_data", "name": "data", "builder": builder, **settings})


def kinds() -> list[str]:
    return [one.model_fields["kind"].default for one in get_args(Builder)]


def names() -> list[str]:
    """All that has to be on the page."""
    rules = get_args(get_args(Contamination)[0])
    methods = [one.model_fields["method"].default for one in rules]
    own = set(BuildData.model_fields) - {"kind", "name", "runtime"}
    listed = [*FORMATS, *FIELDS, *Sieve.model_fields, *Conversion.model_fields, *get_args(Rule), *BANDS, *own]
    return [*kinds(), *methods, *listed]


@pytest.mark.parametrize("name", sorted(set(names())))
def test_it_is_on_the_page(name: str) -> None:
    assert re.search(rf"`{re.escape(name)}\b", TEXT)


def test_formats_make_what_the_table_says() -> None:
    made: dict[str, tuple[str, ...]] = {}
    table = TEXT.partition("### Formats")[2].partition("\n\n`system`")[0]
    for first, last in re.findall(r"^\| (`.*?) \|.*\| (`[^|]*) \|$", table, flags=re.MULTILINE):
        made |= {name: tuple(re.findall(r"`(\w+)`", last)) for name in re.findall(r"`(\w+)`", first)}
    assert made == {name: one.kinds for name, one in FORMATS.items()}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (DOC.parent / target).exists(), target

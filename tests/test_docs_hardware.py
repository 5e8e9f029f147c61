"""docs/hardware.md has a line for each way that the code can take, and each run that it names can be found."""

import argparse
import re
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_align import cli
from qwen_align.align.settings.engine import EngineSettings
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.runtime import Runtime, Strategy
from qwen_align.align.settings.training import Lora, Optimizer
from qwen_align.align.stages.registry import STAGE_KINDS, import_function

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
UNTESTED, NOT_RUN, NOTHING = "*untested on hardware*", "not run", "–"
# Ways of computing that no setting names, and the file that is there as long as they are.
WITHOUT_SETTING = {
    "sequence packing": "align/models/packed_attention.py",
    "head in tiles": "align/training/token_scores.py",
    "fused decoding": "align/generation/fused_decoding.py",
    "mixtures of experts": "align/training/expert_load.py",
    "YaRN": "align/models/rotary_scaling.py",
}
# Which of the runtime's settings are ways of computing of their own; the others say how much, or are among the lines.
RUNTIME_SWITCHES = {"deepspeed", "nodes", "gradient_checkpointing", "activation_offloading"}
RUNTIME_VALUES = {"offload", "attention"}
RUNTIME_AMOUNTS = {
    *("device", "processes", "micro_batch", "micro_batch_tokens", "generation_batch", "kv_cache_gib"),
    *("prefill_tokens", "checkpoint_every", "threads"),
    "strategy",  # in the lines of the kinds
    "engine",  # has lines of its own
}


def read_table(mark: str) -> list[list[str]]:
    """The lines of the table behind a mark in the page, without its heading."""
    text = PAGE.partition(f"<!-- {mark} -->")[2].strip().partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def list_values(settings: Any, field: str) -> list[str]:
    """The values of a setting's Literal, without `auto` and `none`, which are one of the others or nothing."""
    found: list[str] = []
    stack = [settings.model_fields[field].annotation]
    while stack:
        annotation = stack.pop(0)
        if arguments := get_args(annotation):
            stack += arguments
        elif isinstance(annotation, str):
            found.append(annotation)
    return [value for value in found if value not in ("auto", "none")]


def list_paths() -> list[str]:
    """Each way that the code can take, by the names in the page."""
    paths = []
    for name, kind in STAGE_KINDS.items():
        if issubclass(import_function(kind.settings), Optimizer):
            paths += [f"{name}, {strategy}" for strategy in get_args(Strategy)]
        elif kind.needs_torch:
            paths.append(name)
    paths += [f"trainer: {value}" for value in list_values(Grpo, "trainer") if value != "native"]
    for field in RUNTIME_VALUES:
        paths += [f"runtime.{field}: {value}" for value in list_values(Runtime, field)]
    paths += [f"runtime.{field}" for field in RUNTIME_SWITCHES]
    paths += [f"launch {option}" for option in list_launchers()]
    paths += ["engine: local", *(f"engine: vllm, {place}" for place in list_values(EngineSettings, "where"))]
    paths += [f"precision: {value}" for value in list_values(Optimizer, "precision")]
    paths += [f"optimizer: {value}" for value in list_values(Optimizer, "optimizer")]
    paths += [f"lora.base_weights: {value}" for value in list_values(Lora, "base_weights")]
    paths += [name for name in ("tf32",) if name in Optimizer.model_fields]
    paths += [f"lora.{name}" for name in ("dora",) if name in Lora.model_fields]
    return paths + list(WITHOUT_SETTING)


def list_launchers() -> list[str]:
    """The options of `launch` of which one has to be given: each is a way to start nodes."""
    commands = next(action for action in cli._build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    (group,) = commands.choices["launch"]._mutually_exclusive_groups
    return [action.option_strings[0] for action in group._group_actions]


def test_each_way_has_one_line_and_no_line_is_of_another() -> None:
    lines = [line[0].strip("`") for line in read_table("what was run")]
    assert sorted(lines) == sorted(list_paths())


def test_the_ways_that_no_setting_names_are_there() -> None:
    assert all((ROOT / path).exists() for path in WITHOUT_SETTING.values())
    assert set(Runtime.model_fields) == RUNTIME_SWITCHES | RUNTIME_VALUES | RUNTIME_AMOUNTS, (
        "is the new setting a way of computing of its own, which needs a line in docs/hardware.md?"
    )


def test_each_cell_says_what_was_run_or_that_nothing_was() -> None:
    marks = {line[0] for line in read_table("runs")}
    used = set()
    for path, *cells in read_table("what was run"):
        assert len(cells) == 5
        assert cells[-1] != NOT_RUN, f"{path}: of GPUs say {UNTESTED}"
        for cell in cells:
            if cell in (UNTESTED, NOT_RUN, NOTHING):
                continue
            found = re.sub(r" \([^)]*\)", "", cell).split(", ")
            assert set(found) <= marks, f"{path}: {cell}"
            used |= set(found)
    assert used == marks, "a run that no line names"


@pytest.mark.parametrize("line", read_table("runs"), ids=lambda line: line[0])
def test_a_run_has_a_date_and_a_command_that_is_there(line: list[str]) -> None:
    _, when, command, what = line
    assert when in ("every change", "no date was kept") or date.fromisoformat(when) <= date.today()
    assert what
    files = re.findall(r"tests/[\w/.]+\.py", command)
    assert files or command in ("`make test`", "by hand")
    assert all((ROOT / file).exists() for file in files), command
    if when == "every change" and files:
        assert "-m" not in command, "what CI does not run is not run with every change"


def test_links_lead_to_headings_that_are_there() -> None:
    for name in ("hardware", "cluster"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        for target, heading in re.findall(r"\]\(([\w./]+\.md)(?:#([\w-]+))?\)", text):
            there = ROOT / "docs" / target
            assert there.exists(), target
            if heading:
                titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                numbered = [
                    f"{slug}-{n}" if (n := slugs[:place].count(slug)) else slug for place, slug in enumerate(slugs)
                ]
                assert heading in numbered, f"{name}.md: {target}#{heading}"

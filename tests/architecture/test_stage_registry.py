"""The registry of stage kinds: it agrees with the unions and the files, and adding a kind is what it promises."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_align.align.settings.recipe import StageSpec
from qwen_align.align.stages.registry import STAGE_KINDS, import_function

ROOT = Path(__file__).parents[2]
UNION = "StageSpec in align/settings/recipe.py"


def kind_of(settings_class: Any) -> str:
    (kind,) = get_args(settings_class.model_fields["kind"].annotation)
    return str(kind)


def test_the_union_of_settings_has_one_member_for_each_kind() -> None:
    members = [kind_of(member) for member in get_args(StageSpec)]
    assert len(members) == len(set(members))
    assert set(members) == set(STAGE_KINDS), (
        f"not in {UNION}: {sorted(set(STAGE_KINDS) - set(members))}; "
        f"not in STAGE_KINDS of align/stages/registry.py: {sorted(set(members) - set(STAGE_KINDS))}"
    )


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_a_kind_has_its_two_files_and_what_its_entry_names(kind: str) -> None:
    for folder in ("settings", "stages"):
        assert (ROOT / "align" / folder / f"{kind}.py").exists(), f"align/{folder}/{kind}.py is missing"
    entry = STAGE_KINDS[kind]
    for import_string in filter(None, (entry.settings, entry.run, entry.check, entry.forecast, entry.list_rows)):
        module, _, name = import_string.partition(":")
        path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
        assert path.exists(), f"{import_string}: {path.relative_to(ROOT)} is missing"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert name in defined, f"{import_string}: {path.relative_to(ROOT)} defines no {name}"
    assert kind_of(import_function(entry.settings)) == kind


def test_a_file_of_settings_and_a_file_of_stages_with_one_name_are_a_kind() -> None:
    settings, stages = (
        {path.stem for path in (ROOT / "align" / folder).glob("[!_]*.py")} for folder in ("settings", "stages")
    )
    shared = {"online_rl"}  # what grpo and ppo share
    assert (settings & stages) - shared == set(STAGE_KINDS), "no entry in STAGE_KINDS of align/stages/registry.py"


def branches(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of what asks which kind of stage something is: comparisons, isinstance, attribute probes."""
    classes = {entry.settings.partition(":")[2] for entry in STAGE_KINDS.values()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(
            isinstance(constant, ast.Constant) and constant.value in STAGE_KINDS
            for operand in (node.left, *node.comparators)
            for constant in ast.walk(operand)
        ):
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = {name.id for argument in node.args[1:] for name in ast.walk(argument) if isinstance(name, ast.Name)}
            is_probe = node.func.id in ("hasattr", "getattr") and "settings" in ast.unparse(node.args[0])
            if (node.func.id == "isinstance" and names & classes) or is_probe:
                yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.MatchClass) and ast.unparse(node.cls) in classes:
            yield node.pattern.lineno if hasattr(node, "pattern") else 0, ast.unparse(node.cls)


# Generic walks over any settings class, which ask for no field of a kind.
FIELD_WALKS = {"align/references.py", "align/store/keys.py"}


def test_only_stages_settings_and_the_registry_branch_on_kinds() -> None:
    found = []
    for path in [ROOT / "cli.py", *(ROOT / "align").rglob("*.py")]:
        name = str(path.relative_to(ROOT))
        if name.startswith(("align/stages/", "align/settings/")) or name in FIELD_WALKS:
            continue
        found += [f"{name}:{line}: {text}" for line, text in branches(ast.parse(path.read_text(encoding="utf-8")))]
    assert not found


# --- a toy kind, added with what the registry promises and nothing else

TOY_SETTINGS = '''
"""Settings of `count_rows`."""

from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.settings.stage import StageSettings


class CountRows(StageSettings):
    """Counts the rows of a data stage."""

    kind: Literal["count_rows"]
    from_data: DataRef = Field(description="whose rows are counted")
    at_most: int = Field(100, ge=1, description="rows beyond this many are not counted")
'''
TOY_STAGE = '''
"""count_rows: how many rows a data stage has."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.rows import read_rows
from qwen_align.align.settings.count_rows import CountRows


def run(spec: CountRows, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    rows = islice(read_rows(inputs[spec.from_data] / "rows.jsonl"), spec.at_most)
    return {"counted": sum(1 for _ in rows)}


def check(stage: Any, preview: Any) -> Iterator[str]:
    yield f"counts {len(preview.list_rows(stage.targets[stage.settings.from_data]))} rows"
'''
TOY_ENTRY = """    "count_rows": StageKind(
        settings=f"{_SETTINGS}.count_rows:CountRows",
        run=f"{_STAGES}.count_rows:run",
        check=f"{_STAGES}.count_rows:check",
        product="evaluation",
        code_version=1,
        needs_torch=False,
        is_single_process=True,
    ),
"""
RECIPE = """
name: toy
stages:
  - {name: data, kind: build_data, builder: {kind: arithmetic, rows: problem, n: 7, steps: [1]}}
  - {name: count, kind: count_rows, from_data: data, at_most: 5}
"""


class Copy:
    """A copy of the tree, imported as `qwen_align` by what runs in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "qwen_align"
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        for name in listed.stdout.decode().splitlines():
            if (ROOT / name).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.root / name)

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text.lstrip("\n"))

    def insert(self, name: str, before: str, text: str) -> None:
        """Puts lines before the first occurrence of `before`."""
        old = (self.root / name).read_text()
        assert before in old
        (self.root / name).write_text(old.replace(before, text + before, 1))

    def python(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root.parent), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


def add_settings(copy: Copy) -> None:
    copy.write("align/settings/count_rows.py", TOY_SETTINGS)


def add_stage(copy: Copy) -> None:
    copy.write("align/stages/count_rows.py", TOY_STAGE)


def add_entry(copy: Copy) -> None:
    copy.insert("align/stages/registry.py", "}\nCODE_VERSIONS", TOY_ENTRY)


def add_member(copy: Copy) -> None:
    path = copy.root / "align/settings/recipe.py"
    (union,) = [line for line in path.read_text().splitlines() if line.startswith("StageSpec = ")]
    path.write_text(path.read_text().replace(union, f"{union} | CountRows"))
    copy.insert(
        "align/settings/recipe.py",
        "from qwen_align.align.settings.dpo import",
        "from qwen_align.align.settings.count_rows import CountRows\n",
    )


def regenerate(copy: Copy) -> None:
    for script in ("tests/architecture/test_code_versions.py", "tests/align/store/test_keys.py"):
        done = copy.python(script, "--new")
        assert done.returncode == 0, done.stderr
    done = copy.python("-m", "qwen_align.align.commands.settings_reference", "docs/reference.md")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_toy_kind_is_added_with_two_files_an_entry_and_a_member(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    for add in (add_settings, add_stage, add_entry, add_member, regenerate):
        add(copy)
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(RECIPE)
    command = ("-m", "qwen_align.cli")
    checked = copy.python(*command, "check", recipe, "--home", tmp_path)
    assert "counts 7 rows" in checked.stdout, checked.stdout + checked.stderr
    ran = copy.python(*command, "run", recipe, "--home", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    manifest = json.loads((tmp_path / "runs/toy/stages/count/manifest.json").read_text())
    assert manifest["summary"] == {"counted": 5}
    for tests in (REGISTRY_TESTS, NEW_KIND_IS_RECORDED):
        suite = copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
        assert suite.returncode == 0, suite.stdout


REGISTRY_TESTS = ("tests/architecture/test_stage_registry.py", "-k", "not toy and not left_out")
NEW_KIND_IS_RECORDED = ("tests/architecture/test_code_versions.py", "-k", "count_rows")
# What is left out -> (how it is added, the tests that miss it, what they say).
STEPS = {
    "settings": (add_settings, REGISTRY_TESTS, "No module named 'qwen_align.align.settings.count_rows'"),
    "stage": (add_stage, REGISTRY_TESTS, "align/stages/count_rows.py is missing"),
    "entry": (add_entry, REGISTRY_TESTS, "not in STAGE_KINDS of align/stages/registry.py: ['count_rows']"),
    "member": (add_member, REGISTRY_TESTS, f"not in {UNION}: ['count_rows']"),
    "generated": (regenerate, NEW_KIND_IS_RECORDED, "'count_rows' is new: record it with `make generated`"),
}


@pytest.mark.slow
@pytest.mark.parametrize("left_out", STEPS)
def test_what_is_left_out_of_a_new_kind_is_named(left_out: str, tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    for name, (add, _, _) in STEPS.items():
        if name not in (left_out, "generated"):
            add(copy)
    _, tests, message = STEPS[left_out]
    suite = copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert suite.returncode != 0
    assert message in suite.stdout, suite.stdout[-3000:]

"""What stands in one place only: think tags, ranks, the checks that a reference is the policy's start."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TAGS = ("<think>", "</think>")
TAG_MODULE = "reward/thinking.py"
CHAT_TEMPLATE = "align/rendering/tiny_tokenizer.py"  # its Jinja template writes the tags out, as templates do
DISTRIBUTED = "align/training/distributed.py"
# What starts the processes, and what tries whether they can be connected, before a stage relies on it.
SETS_RANKS = {
    "align/pipeline/warm_server.py",
    "align/pipeline/launcher.py",
    "align/doctor/all_reduce_process.py",
    "align/doctor/devices.py",
}
REFERENCE_CHECK = "align/training/reference_check.py"


@cache
def product_files() -> list[str]:
    paths = [
        ROOT / "cli.py",
        *(path for top in ("align", "reward", "data_builders") for path in (ROOT / top).rglob("*.py")),
    ]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def strings(file: str) -> Iterator[str]:
    """The string constants of a file that are no docstrings, parts of f-strings included."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("file", [file for file in product_files() if file != TAG_MODULE])
def test_think_tags_are_spelled_in_one_module(file: str) -> None:
    """Rewards may hold example completions with tags, their probes; the tags by themselves nobody may spell."""
    spelled = [text for text in strings(file) if text in TAGS]
    assert not spelled, f"take OPEN and CLOSE from {TAG_MODULE}"
    if not file.startswith("reward/") and file != CHAT_TEMPLATE:
        written = [text for text in strings(file) if any(tag in text for tag in TAGS)]
        assert not written, f"tags are put together and parsed by the functions of {TAG_MODULE}"


# What a weight is in parts; they ask for no rank and wait for nobody by themselves.
OF_SHARDS = {f"torch.distributed.{name}" for name in ("tensor", "fsdp", "device_mesh")}


@pytest.mark.parametrize("file", [file for file in product_files() if file != DISTRIBUTED and file not in SETS_RANKS])
def test_ranks_world_size_and_barriers_are_asked_for_in_one_module(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    asked = [text for text in strings(file) if text in {"RANK", "LOCAL_RANK", "WORLD_SIZE"}]
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        asked += [name for name in names if name.startswith("torch.distributed") and name not in OF_SHARDS]
        if isinstance(node, ast.Attribute) and node.attr == "distributed":
            asked.append(ast.unparse(node))
    assert not asked, f"ask the functions of {DISTRIBUTED}"


def test_a_first_step_is_checked_against_its_reference_in_one_module() -> None:
    said = re.compile(r"the reference is another model|FIRST_(?:KL|REWARD)_TOLERANCE *=")
    found = {file for file in product_files() if said.search((ROOT / file).read_text(encoding="utf-8"))}
    assert found == {REFERENCE_CHECK}

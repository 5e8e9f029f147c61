"""Keeps the code versions honest: a change of a stage's code fails here until its version is raised or it is blessed.

`python tests/architecture/test_code_versions.py --bless` records the code as it is, after you have decided.
"""

import ast
import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.stages.registry import CODE_VERSIONS, STAGE_KINDS

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"qwen_align(?:\.\w+)+(?::\w+)?")
RECORDED = ROOT / "tests" / "code_versions.json"

# What says whether, where and how visibly a stage runs, but not what it makes: refusals and their words, names of
# references, folders and locks, progress and stop signals, estimates of memory.
CANNOT_CHANGE_RESULTS = {
    "align.context",
    "align.errors",
    "align.estimation.stage_estimate",
    "align.references",
    "align.store.store",
    "align.settings.base",
    "align.stages.registry",
}


@functools.cache
def code_of(kind: str) -> list[str]:
    """The modules that can change what a kind of stage makes: its own and all that they import, sorted."""
    found: set[str] = set()
    # trl_args turns each kind's settings into TRL's arguments; a kind never sees those of the others.
    others = {f"align.settings.{other}" for other in (*CODE_VERSIONS, "online_rl") if other != kind}
    waiting = [f"align.stages.{kind}"]
    while waiting:
        module = waiting.pop()
        if module not in found | CANNOT_CHANGE_RESULTS:
            found.add(module)
            needed = needed_by(module)
            waiting += needed - others if module == "align.training.trl_arguments" else needed
    return sorted(found)


@functools.cache
def needed_by(module: str) -> set[str]:
    """The modules of this package that a module imports or runs in another process."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    return {*imported(tree), *started(tree, module)}


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of this package that a module imports, late or by their name in a string ("qwen_align.a.b:run")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value):
            module = node.value.partition(":")[0].removeprefix("qwen_align.")
            if path_of(module).exists():
                yield module
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("qwen_align."):
            module = node.module.removeprefix("qwen_align.")
            within = {name.name for name in node.names if path_of(f"{module}.{name.name}").exists()}
            yield from (f"{module}.{name}" for name in within)
            if len(within) < len(node.names):
                yield module
        elif isinstance(node, ast.Import):
            yield from (
                one.name.removeprefix("qwen_align.") for one in node.names if one.name.startswith("qwen_align.")
            )


def started(tree: ast.AST, module: str) -> Iterator[str]:
    """The modules beside this one that it names by their file, as it does what it runs in another process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\w+\.py", node.value):
            beside = path_of(module).with_name(node.value)
            if beside.exists():
                yield f"{module.rpartition('.')[0]}.{beside.stem}"


def digest(kind: str) -> str:
    sha = hashlib.sha256()
    for module in code_of(kind):
        sha.update(f"{module}\n{meaning(path_of(module).read_text(encoding='utf-8'))}\n".encode())
    return sha.hexdigest()


@functools.cache
def meaning(source: str) -> str:
    """The syntax tree without comments, docstrings and positions, the same for every version of Python."""
    return repr(_plain(ast.parse(source)))


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_bare_text(item)]
    if isinstance(node, ast.AST):
        # Empty fields are left out: newer versions of Python have more of them.
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node) if name != "kind"]
        return (type(node).__name__, *[field for field in fields if field[1] not in (None, [])])
    return node


def _is_bare_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize("kind", sorted(CODE_VERSIONS))
def test_a_stages_code_is_the_one_its_version_was_recorded_with(kind: str) -> None:
    recorded = json.loads(RECORDED.read_text())
    bless = "python tests/architecture/test_code_versions.py --bless"
    assert kind in recorded, f"'{kind}' is new: record it with `make generated`"
    version = recorded[kind]["version"]
    assert CODE_VERSIONS[kind] >= version, f"the code_version of '{kind}' was {version}; versions are never lowered"
    if CODE_VERSIONS[kind] == version:
        assert digest(kind) == recorded[kind]["digest"], (
            f"the code of '{kind}' changed ({', '.join(code_of(kind))}). If its results change, raise "
            f"its code_version in align/stages/registry.py; if they stay as they are, do not. Then record it: `{bless}`"
        )
    assert CODE_VERSIONS[kind] == version, f"version {CODE_VERSIONS[kind]} of '{kind}' is new: record it with `{bless}`"


def test_every_kind_has_a_version_and_nothing_else_has() -> None:
    assert set(CODE_VERSIONS) == set(STAGE_KINDS)
    assert set(json.loads(RECORDED.read_text())) == set(STAGE_KINDS)


def test_a_kinds_code_is_all_that_can_change_its_results() -> None:
    assert {
        "align.rendering.renderer",
        "align.rendering.chat_template",
        "align.training.trl_arguments",
        "align.training.checkpoints",
        "align.settings.sft",
    } <= set(code_of("sft"))
    assert {"data_builders.arithmetic", "reward.math_answer", "align.rows"} <= set(code_of("build_data"))
    assert {"align.generation.batched_decoding", "align.evaluation.statistics", "reward.combine"} <= set(
        code_of("evaluate")
    )
    in_workers = {"reward.worker_pool_server", "reward.combine"}
    assert in_workers <= set(code_of("rollout")), "also what runs in worker processes"
    in_processes = {"reward.code.cell_server", "reward.code.cell_main", "reward.math.sympy_fallback"}
    assert in_processes <= set(code_of("evaluate"))
    for kind in CODE_VERSIONS:
        assert not CANNOT_CHANGE_RESULTS & set(code_of(kind))
    assert "align.stages.grpo" not in code_of("sft")
    assert not any(module.startswith(("align.generation.", "reward.math")) for module in code_of("sft"))


def test_what_cannot_change_results_exists() -> None:
    assert all(path_of(module).exists() for module in CANNOT_CHANGE_RESULTS)


def test_words_do_not_count_and_code_does() -> None:
    code = 'def rate(x):\n    return x * 2\n\nNAME = "a"\n'
    words = (
        '"""A module."""\n\ndef rate(x):  # why\n    """Twice."""\n\n    return (x * 2)\n\nNAME = "a"\n"""A name."""\n'
    )
    assert meaning(code) == meaning(words)
    for old, new in [("2", "3"), ("2", "2.0"), ("*", "+"), ('"a"', '"b"'), ("rate", "pace"), ('"a"', 'f"a{NAME}"')]:
        assert meaning(code) != meaning(code.replace(old, new))


def record(*, only_new: bool) -> None:
    """Writes the recorded file; `only_new`: kinds that are there keep what was recorded of them."""
    kept = json.loads(RECORDED.read_text()) if only_new else {}
    recorded = {
        kind: kept.get(kind) or {"version": CODE_VERSIONS[kind], "digest": digest(kind)}
        for kind in sorted(CODE_VERSIONS)
    }
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] not in (["--bless"], ["--new"]):
        sys.exit(f"usage: {sys.argv[0]} --bless (all kinds) or --new (kinds that are not recorded yet)")
    record(only_new=sys.argv[1] == "--new")

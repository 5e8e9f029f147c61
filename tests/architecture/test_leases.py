"""Who may write in a folder that hosts share is told by leases: no locks of the file system, no process numbers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IDENTITY = "align/store/process_identity.py"  # says which process on which machine this is
# Process numbers of this very machine: of a process's own parent, children and forks.
OWN_PROCESSES = {
    IDENTITY,
    "align/engines/server_guard.py",
    "align/models/loading.py",  # a fork does not delete its parent's folder
    "align/pipeline/launcher.py",
    "align/pipeline/lease_guard.py",
    "align/pipeline/process_lifetime.py",
    "align/store/lease.py",
}
OWN_FOLDER = "align/pipeline/deepspeed_operators.py"  # locks a folder of this machine's, for builds of this machine
FOLLOWER = "align/pipeline/follower.py"  # tells the first node what people call this one
FILES = [ROOT / "cli.py", *sorted((ROOT / "align").rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_locked_or_named_by_what_other_hosts_do_not_know(path: Path) -> None:
    tree, name = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix()
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not asked & {"flock", "lockf"} or name == OWN_FOLDER, "take a lease: align/store/lease.py"
    assert "getpid" not in asked or name in OWN_PROCESSES, "two hosts may have the number: name files by a random token"
    assert "gethostname" not in asked or name in {IDENTITY, FOLLOWER}, f"who asks which machine this is asks {IDENTITY}"


def test_those_that_know_process_numbers_do() -> None:
    assert all("getpid" in (ROOT / name).read_text(encoding="utf-8") for name in OWN_PROCESSES)


def test_leases_need_the_standard_library_alone() -> None:
    for path in (ROOT / "align" / "store").glob("lease*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        ours = {one for one in modules if one.startswith("qwen_align")}
        assert ours <= {
            "qwen_align.align.errors",
            *(f"qwen_align.align.store.{name}" for name in ("lease_files", "lease_record", "process_identity")),
        }

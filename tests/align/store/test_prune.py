"""Pruning deletes what no run links to, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.store.prune import prune_store
from qwen_align.align.store.stage_folder import StageFolder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with three stored stages, of which a run links to the first."""
    for name in ("sft-0123456789abcdef", "dpo-0123456789abcdef", "build_data-0123456789abcdef"):
        folder = tmp_path / "store" / name
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_bytes(bytes(2**20))
    links = tmp_path / "runs" / "trial" / "stages"
    links.mkdir(parents=True)
    (links / "sft").symlink_to("../../../store/sft-0123456789abcdef", target_is_directory=True)
    (links / "gone").symlink_to("../../../store/sft-ffffffffffffffff", target_is_directory=True)
    (tmp_path / "store" / "digests.json").write_text("{}")
    return tmp_path


def stored(home: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in (home / "store").iterdir())


def test_what_no_run_links_to_is_deleted(home: Path) -> None:
    freed = list(prune_store(home, dry_run=False))
    assert [(folder.name.partition("-")[0], round(gib * 1024, 2)) for folder, gib in freed] == [
        ("build_data", pytest.approx(1.0, abs=0.05)),
        ("dpo", pytest.approx(1.0, abs=0.05)),
    ]
    assert stored(home) == ["digests.json", "sft"]
    assert (home / "store" / "sft-0123456789abcdef" / "model" / "weights").exists()
    assert list(prune_store(home, dry_run=False)) == []


def test_a_dry_run_deletes_nothing(home: Path) -> None:
    assert len(list(prune_store(home, dry_run=True))) == 2
    assert stored(home) == ["build_data", "digests.json", "dpo", "sft"]


def test_a_stage_at_work_is_left_alone(home: Path) -> None:
    with StageFolder(home / "store" / "dpo-0123456789abcdef").hold_lock():
        assert [folder.name[:5] for folder, _ in prune_store(home, dry_run=False)] == ["build"]
    assert stored(home) == ["digests.json", "dpo", "sft"]


def test_a_run_that_is_deleted_no_longer_holds(home: Path) -> None:
    (home / "runs" / "trial" / "stages" / "sft").unlink()
    assert len(list(prune_store(home, dry_run=False))) == 3


def test_a_home_without_a_store_has_nothing_to_prune(tmp_path: Path) -> None:
    assert list(prune_store(tmp_path, dry_run=False)) == []
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_freed(home: Path, cli: Callable[..., Any]) -> None:
    assert cli("prune", "--dry-run").out.count("would free    0.001 GiB") == 2
    said = cli("prune")
    assert (said.code, said.out.count("freed    0.001 GiB")) == (0, 2)
    assert str(home / "store" / "dpo-0123456789abcdef") in said.out

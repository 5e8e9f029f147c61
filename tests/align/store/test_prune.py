"""Pruning deletes stages that no run folder names, and nothing else."""

import json
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.errors import StageError
from qwen_align.align.store import lease, run_links
from qwen_align.align.store.prune import prune_store
from qwen_align.align.store.run_folders import hold_runs_lease
from qwen_align.align.store.run_links import hold_run_links
from qwen_align.align.store.stage_folder import StageFolder

DIGITS = "0123456789abcdef"


def write_stage(home: Path, name: str, *, model: dict[str, Any] | None = None, is_complete: bool = True) -> Path:
    """A folder as a stage leaves it."""
    folder = home / "store" / name
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(bytes(2**20))
    (folder / "lock").write_text("1")
    (folder / "stage.json").write_text(json.dumps({"key": name.rpartition("-")[2] + "00", "inputs": {}}))
    outputs = {"model/weights": "0"}
    if model:
        (folder / "model.json").write_text(json.dumps(model))
        outputs["model.json"] = "0"
    if is_complete:
        record = {"key": name.rpartition("-")[2] + "00", "outputs": outputs}
        (folder / "manifest.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with three stored stages, of which a run links to the first."""
    for name in ("sft", "dpo", "build_data"):
        write_stage(tmp_path, f"{name}-{DIGITS}", is_complete=name != "dpo")
    links = tmp_path / "runs" / "trial" / "stages"
    links.mkdir(parents=True)
    (links / "sft").symlink_to(f"../../../store/sft-{DIGITS}", target_is_directory=True)
    (links / "gone").symlink_to("../../../store/sft-ffffffffffffffff", target_is_directory=True)
    (tmp_path / "store" / "digests.json").write_text("{}")
    return tmp_path


@pytest.fixture
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that shows at once what is written, so that the files of thousands of leases go at once."""
    monkeypatch.setattr(lease, "VISIBILITY_S", 0.0)


def stored(home: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in (home / "store").iterdir() if path.name != "lock")


def prune(home: Path) -> list[str]:
    """Prunes and returns the kinds of stage that went."""
    return [folder.name.partition("-")[0] for folder, _ in prune_store(home, dry_run=False)]


def test_what_no_run_links_to_is_deleted(home: Path) -> None:
    freed = list(prune_store(home, dry_run=False))
    assert [(folder.name.partition("-")[0], round(gib * 1024, 2)) for folder, gib in freed] == [
        ("build_data", pytest.approx(1.0, abs=0.05)),
        ("dpo", pytest.approx(1.0, abs=0.05)),
    ]
    assert stored(home) == ["digests.json", "sft"]
    assert (home / "store" / f"sft-{DIGITS}" / "model" / "weights").exists()
    assert prune(home) == []


def test_a_dry_run_deletes_nothing(home: Path) -> None:
    assert len(list(prune_store(home, dry_run=True))) == 2
    assert stored(home) == ["build_data", "digests.json", "dpo", "sft"]


def test_a_stage_at_work_is_left_alone(home: Path) -> None:
    with StageFolder(home / "store" / f"dpo-{DIGITS}").hold_lease():
        assert prune(home) == ["build_data"]
    assert stored(home) == ["digests.json", "dpo", "sft"]


def test_a_run_that_is_deleted_no_longer_holds(home: Path) -> None:
    (home / "runs" / "trial" / "stages" / "sft").unlink()
    assert len(list(prune_store(home, dry_run=False))) == 3


def test_a_home_without_a_store_has_nothing_to_prune(tmp_path: Path) -> None:
    assert list(prune_store(tmp_path, dry_run=False)) == []
    assert list(tmp_path.iterdir()) == []


def put_file(folder: Path) -> None:
    (folder / "mine.txt").write_text("mine")


def make_others_folder(folder: Path) -> None:
    folder.mkdir()
    put_file(folder)


def make_keyless_folder(folder: Path) -> None:
    make_others_folder(folder)
    (folder / "lock").touch()
    (folder / "stage.json").write_text(json.dumps({"key": "another"}))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("my-notes", make_others_folder),
        (f"notes-{DIGITS}", make_others_folder),
        ("sft-2026", make_others_folder),
        (f"sft-{DIGITS}0", make_others_folder),
        (f"sft-{DIGITS.upper()}", make_others_folder),
        ("grpo-fedcba9876543210", make_others_folder),
        ("grpo-fedcba9876543210", make_keyless_folder),
        ("grpo-fedcba9876543210", lambda path: path.write_text("a file")),
    ],
)
def test_what_no_stage_wrote_is_left_alone(home: Path, name: str, make: Callable[[Path], object]) -> None:
    make(home / "store" / name)
    assert prune(home) == ["build_data", "dpo"]
    assert (home / "store" / name).exists()


def test_a_users_file_in_a_stages_folder_keeps_it(home: Path) -> None:
    put_file(home / "store" / f"build_data-{DIGITS}")
    kept: list[str] = []
    freed = prune_store(home, dry_run=False, report_kept=kept.append)
    assert [folder.name for folder, _ in freed] == [f"dpo-{DIGITS}"]
    assert kept == [f"{home / 'store' / f'build_data-{DIGITS}'}: holds mine.txt, which no stage wrote"]


def test_links_are_never_followed(home: Path, tmp_path: Path) -> None:
    elsewhere = (home / "store" / f"dpo-{DIGITS}").rename(tmp_path / "elsewhere")
    (home / "store" / f"dpo-{DIGITS}").symlink_to(elsewhere)
    (home / "store" / f"build_data-{DIGITS}" / "model" / "link").symlink_to(elsewhere)
    assert prune(home) == ["build_data"]
    assert (elsewhere / "model" / "weights").exists()
    assert (home / "store" / f"dpo-{DIGITS}").is_symlink()


def test_a_store_that_is_a_link_is_refused(home: Path) -> None:
    (home / "store").rename(home / "big")
    (home / "store").symlink_to(home / "big")
    with pytest.raises(StageError, match="other homes may use"):
        prune(home)


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_stages_without_any_link_are_not_taken_for_unused(home: Path, cli: Callable[..., Any], what: str) -> None:
    (home / "runs").rename(home / "archive")
    if what == "file":
        (home / "runs").write_text("")
    elif what == "empty":
        (home / "runs" / "trial" / "stages").mkdir(parents=True)
    said = cli("prune")
    assert said.code == 4
    assert "so 3 stages would all go" in said.err
    assert stored(home) == ["build_data", "digests.json", "dpo", "sft"]


def test_a_run_folder_that_was_moved_still_holds(home: Path) -> None:
    (home / "runs" / "old").mkdir()
    (home / "runs" / "trial").rename(home / "runs" / "old" / "trial")
    assert prune(home) == ["build_data", "dpo"]


def test_what_a_linked_stage_builds_on_is_kept(home: Path) -> None:
    """A recipe may read a finished stage by its path: no link names it, but the model below an adapter is in it."""
    base, middle, top = (f"{kind}-aaaaaaaaaaaaaaaa" for kind in ("pretrain", "grpo", "ppo"))
    write_stage(home, base)
    write_stage(home, middle, model={"base": f"../{base}/model", "adapters": ["adapter"]})
    write_stage(home, top, model={"base": f"../{base}/model", "adapters": [f"../{middle}/adapter", "adapter"]})
    (home / "runs" / "trial" / "stages" / "top").symlink_to(f"../../../store/{top}")
    read = write_stage(home, "rollout-bbbbbbbbbbbbbbbb")
    record = {"key": DIGITS, "inputs": {"from_data": {"folder": str(read)}}}
    (home / "store" / f"sft-{DIGITS}" / "stage.json").write_text(json.dumps(record))
    named = write_stage(home, "sft-cccccccccccccccc")
    (home / "runs" / "trial" / "recipe.yaml").write_text(json.dumps({"models": {"base": {"path": str(named)}}}))
    assert prune(home) == ["build_data", "dpo"]


def test_the_command_says_what_it_freed(home: Path, cli: Callable[..., Any]) -> None:
    assert cli("prune", "--dry-run").out.count("would free    0.001 GiB") == 2
    put_file(home / "store" / f"build_data-{DIGITS}")
    said = cli("prune")
    assert (said.code, said.out.count("freed    0.001 GiB"), said.out.count("left alone: ")) == (0, 1, 1)
    assert str(home / "store" / f"dpo-{DIGITS}") in said.out


def test_links_are_renewed_without_a_moment_in_which_they_are_gone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step of a relinking, whatever the run named before and after is named."""
    run = home / "runs" / "trial"
    (run / "stages" / "mine.txt").write_text("no link")
    before = {"sft": home / "store" / f"sft-{DIGITS}", "old": home / "store" / f"dpo-{DIGITS}"}
    after = {"sft": home / "store" / f"sft-{DIGITS}", "new": home / "store" / f"build_data-{DIGITS}"}
    with hold_run_links(run, before):
        pass
    seen: list[set[str]] = []

    def replace_and_look(link: Path, target: str) -> None:
        seen.append(run_links.find_named_stages(home))
        real(link, target)
        seen.append(run_links.find_named_stages(home))

    real = run_links._replace_link
    monkeypatch.setattr(run_links, "_replace_link", replace_and_look)
    with hold_run_links(run, after):
        assert {path.name for path in (run / "stages").iterdir()} == {"sft", "new", "mine.txt"}
        with hold_run_links(run, before):  # another run of the same name, whose end is not that of the first
            assert {"sft", "new", "old"} <= {path.name for path in (run / "stages").iterdir()}
            with hold_run_links(run, {"new": home / "store" / "sft-ffffffffffffffff"}):
                assert f"build_data-{DIGITS}" in run_links.find_named_stages(home), "the first still works with it"
    assert all({path.name for path in before.values()} <= names for names in seen[:4])


@pytest.mark.slow(seconds=4)
def test_prune_among_runs_never_deletes_what_a_run_folder_names(tmp_path: Path, one_machine: None) -> None:
    """400 steps drawn at random: runs begin, make stages, end and are deleted, are killed half-way; prunes between.

    Independent of the product: what must stay is read off the links with `os.readlink`.
    """
    rng = random.Random(0)
    at_work: list[ExitStack] = []
    pruned = 0
    for _ in range(400):
        action = rng.choice(["run", "run", "end", "make", "make", "prune", "kill"])
        if action in ("run", "kill"):
            names = rng.sample(range(24), 3)
            targets = {f"s{n}": tmp_path / "store" / f"sft-{n:016x}" for n in names}
            held = ExitStack()
            with hold_runs_lease(tmp_path):
                run = tmp_path / "runs" / rng.choice("abc")
                held.enter_context(hold_run_links(run, targets))
            if action == "kill" and rng.random() < 0.5:
                held.close()
            else:
                at_work.append(held)
            while len(at_work) > 2:
                at_work.pop(rng.randrange(3)).close()
        elif action == "end" and at_work:
            at_work.pop(rng.randrange(len(at_work))).close()
        elif action == "make":
            name = f"sft-{rng.randrange(24):016x}"
            if not (tmp_path / "store" / name).exists():
                (tmp_path / "store" / name).mkdir(parents=True)
                (tmp_path / "store" / name / "lock").touch()
        elif action == "prune":
            links = [link for link in tmp_path.glob("runs/*/stages/*") if link.is_symlink()]
            named = {Path(os.readlink(link)).name for link in links}
            there = {path.name for path in tmp_path.glob("store/sft-*")}
            if there and not named:
                with pytest.raises(StageError):
                    prune(tmp_path)
            else:
                pruned += len(prune(tmp_path))
                assert {path.name for path in tmp_path.glob("store/sft-*")} == there & named
    for held in at_work:
        held.close()
    assert pruned > 20


@pytest.mark.slow(seconds=4)
def test_four_hundred_runs_at_once_with_prunes_lose_no_stage_they_link_to(tmp_path: Path, one_machine: None) -> None:
    """Three runs at a time relink, make what is missing and look again at the end, while a fourth thread prunes."""
    (tmp_path / "store").mkdir()
    is_over = threading.Event()

    def begin_and_end_runs(number: int) -> int:
        rng, n_made = random.Random(number), 0
        for _ in range(134):
            folders = [tmp_path / "store" / f"sft-{n:016x}" for n in rng.sample(range(8), 3)]
            with ExitStack() as held:
                with hold_runs_lease(tmp_path):
                    run = tmp_path / "runs" / rng.choice("ab")
                    held.enter_context(hold_run_links(run, {folder.name: folder for folder in folders}))
                for folder in folders:
                    if not (folder / "lock").exists():
                        with StageFolder(folder).hold_lease() if rng.random() < 0.5 else ExitStack():
                            folder.mkdir(exist_ok=True)
                            (folder / "lock").touch()
                        n_made += 1
                assert all((folder / "lock").exists() for folder in folders), "a stage of a run at work went"
        return n_made

    def prune_until_over() -> int:
        n_pruned = 0
        while not is_over.is_set():
            try:
                n_pruned += len(prune(tmp_path))
            except StageError:  # no run has linked anything yet
                continue
        return n_pruned

    with ThreadPoolExecutor() as threads:
        pruning = threads.submit(prune_until_over)
        runs = [threads.submit(begin_and_end_runs, number) for number in range(3)]
        try:
            assert sum(run.result(timeout=60) for run in runs) > 8, "stages were pruned and made again"
        finally:
            is_over.set()
        assert pruning.result(timeout=60) > 0

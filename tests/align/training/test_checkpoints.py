"""A damaged checkpoint is passed over and said, whatever is wrong with it, and never gone on from."""

import itertools
import json
import multiprocessing
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.errors import StageError
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.store import integrity
from qwen_align.align.store.files import compute_sha256, read_json, write_json
from qwen_align.align.training import checkpoint_files, checkpoints, distributed, resume_rules

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", "more/state.json")


def make(home: Path, step: int, world_size: int = 1, strategy: str = "ddp") -> Path:
    """A checkpoint put in place as trainers do, and nothing else there."""
    folder = checkpoints.get_partial_folder(home, step)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"{name} of step {step}".encode() * 100)
    digests = integrity.digest_files(folder, FILES)
    integrity.seal_folder(folder, digests, step=step, world_size=world_size, strategy=strategy)
    folder.rename(home / folder.name)
    return home / folder.name


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_seal(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    """The damage that changes what complete.json says."""

    def damage(folder: Path) -> None:
        said = read_json(folder / integrity.COMPLETE)
        change(said)
        write_json(folder / integrity.COMPLETE, said)

    return damage


def forget_file(folder: Path) -> None:
    """The optimiser's file is gone, and so is every trace of it."""
    (folder / "optimizer.pt").unlink()
    in_seal(lambda said: said["files"].pop("optimizer.pt"))(folder)


def of_an_older_version(folder: Path) -> None:
    """Sizes instead of digests, and no seal."""
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    (folder / integrity.COMPLETE).write_text(json.dumps({"files": sizes, "world_size": 1}))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} truncated": (lambda folder, name=name: truncate(folder / name), name) for name in FILES},
    **{f"{name} removed": (lambda folder, name=name: (folder / name).unlink(), f"{name} is missing") for name in FILES},
    **{f"{name} has a flipped byte": (lambda folder, name=name: flip(folder / name), name) for name in FILES},
    **{f"{name} is empty": (lambda folder, name=name: (folder / name).write_bytes(b""), name) for name in FILES},
    "two files swapped": (
        lambda folder: (
            (folder / "optimizer.pt").rename(folder / "kept"),
            (folder / "scheduler.pt").rename(folder / "optimizer.pt"),
            (folder / "kept").rename(folder / "scheduler.pt"),
        ),
        "is not what was written",
    ),
    "complete.json missing": (lambda folder: (folder / integrity.COMPLETE).unlink(), "complete.json is missing"),
    "complete.json cut": (lambda folder: truncate(folder / integrity.COMPLETE), "complete.json"),
    "complete.json empty": (lambda folder: (folder / integrity.COMPLETE).write_text(""), "complete.json"),
    "complete.json no object": (lambda folder: (folder / integrity.COMPLETE).write_text("[]"), "complete.json"),
    "complete.json has a flipped byte": (lambda folder: flip(folder / integrity.COMPLETE), ""),
    "complete.json lacks a file": (in_seal(lambda said: said["files"].popitem()), "complete.json"),
    "complete.json lacks a file that is gone": (forget_file, "complete.json"),
    "complete.json names another step": (in_seal(lambda said: said.update(step=9)), "complete.json"),
    "of an older version": (of_an_older_version, "complete.json"),
    "a shard of another run beside it": (
        lambda folder: (folder / "rng_state_1.pth").write_bytes(b"foreign"),
        "rng_state_1.pth was not there when it was sealed",
    ),
    "an empty folder": (empty, "complete.json is missing"),
    "renamed to a later step": (lambda folder: folder.rename(folder.with_name("checkpoint-12")), "holds step 10"),
    "half-renamed": (
        lambda folder: folder.rename(folder.with_name("checkpoint-10.tmp")),
        "checkpoint-10.tmp: its name has no step",
    ),
    "half-renamed without a step": (
        lambda folder: folder.rename(folder.with_name("checkpoint-")),
        "checkpoint-: its name has no step",
    ),
    "half-copied into itself": (
        lambda folder: (
            shutil.copytree(folder, folder.with_name("x")),
            empty(folder),
            (folder.with_name("x")).rename(folder / folder.name),
        ),
        "complete.json is missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    older, newer = make(tmp_path, 5), make(tmp_path, 10)
    damage(newer)
    found = checkpoints.find_newest_checkpoint(tmp_path)
    assert found.folder == older
    (said,) = found.damaged
    assert said.startswith(f"{tmp_path}/checkpoint-")
    assert message in said
    shutil.rmtree(older)
    assert checkpoints.find_newest_checkpoint(tmp_path) == checkpoints.ResumePoint(None, [said])


def test_the_newest_whole_one_is_taken_and_nothing_is_said(tmp_path: Path) -> None:
    assert checkpoints.find_newest_checkpoint(tmp_path / "none") == checkpoints.ResumePoint(None, [])
    make(tmp_path, 5)
    newer = make(tmp_path, 10)
    assert checkpoints.find_newest_checkpoint(tmp_path) == checkpoints.ResumePoint(newer, [], ("ddp", 1))


def test_an_unfinished_one_is_no_damage_and_is_cleared_away(tmp_path: Path) -> None:
    folder = checkpoints.get_partial_folder(tmp_path, 5)
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text("half")
    assert checkpoints.find_newest_checkpoint(tmp_path) == checkpoints.ResumePoint(None, [])
    assert not folder.exists()


def test_ddp_and_fsdp2_go_on_in_another_number_of_processes_and_deepspeed_does_not(tmp_path: Path) -> None:
    for strategy in ("ddp", "fsdp2", "zero1", "zero2", "zero3"):
        home = tmp_path / strategy
        checkpoint = make(home, 5, world_size=2, strategy=strategy)
        at_door = resume_rules.find_obstacle_at_door(home, Runtime(strategy=strategy), 1)
        if strategy in ("ddp", "fsdp2"):
            assert at_door is None
            assert checkpoints.find_newest_checkpoint(home, strategy).saved_by == (strategy, 2)
            continue
        said = (
            f"saved by 2 process(es) with runtime.strategy: {strategy}, but this run has 1: DeepSpeed's shards are of"
        )
        assert at_door is not None
        assert at_door.startswith(f"{checkpoint}: {said}")
        assert at_door.endswith("Run with the runtime as before, or recompute the stage with --force")
        with pytest.raises(StageError, match=re.escape(said)):
            checkpoints.find_newest_checkpoint(home, strategy)
        assert resume_rules.find_obstacle_at_door(home, Runtime(strategy=strategy), 2) is None


def test_one_strategy_does_not_go_on_from_anothers(tmp_path: Path) -> None:
    make(tmp_path, 5)
    newest = make(tmp_path, 10, strategy="zero3")
    said = (
        "saved by 1 process(es) with runtime.strategy: zero3, but this run has 1 process(es) with runtime.strategy: ddp"
    )
    assert resume_rules.find_obstacle_at_door(tmp_path, Runtime(), 1) is not None
    with pytest.raises(StageError, match=re.escape(said)):
        checkpoints.find_newest_checkpoint(tmp_path, "ddp")
    flip(newest / integrity.COMPLETE)  # of a damaged one nothing is known; the older one is of this strategy
    assert resume_rules.find_obstacle_at_door(tmp_path, Runtime(), 1) is None
    assert checkpoints.find_newest_checkpoint(tmp_path, "ddp").step == 5


def test_a_checkpoint_of_a_version_without_strategies_is_ddps(tmp_path: Path) -> None:
    folder = make(tmp_path, 5)
    record = integrity.read_seal(folder)
    del record["strategy"], record["sizes"]
    write_json(folder / integrity.COMPLETE, {**record, "sha256": integrity._compute_record_digest(record)})
    assert checkpoints.find_newest_checkpoint(tmp_path, "ddp").saved_by == ("ddp", 1)


def test_finishing_one_deletes_the_others_damaged_ones_too(tmp_path: Path) -> None:
    make(tmp_path, 5)
    empty(make(tmp_path, 10))
    folder = checkpoints.get_partial_folder(tmp_path, 7)
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text("o")
    checkpoints.publish_checkpoint(tmp_path, 7, checkpoints.digest_own_files(folder), "ddp")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-7"]
    assert checkpoints.find_newest_checkpoint(tmp_path).step == 7


# What real runs of two processes have written under each strategy: transformers, DeepSpeed 0.19 and torch 2.13.
COMMON = ["trainer_state.json", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"]
ZERO_STATES = [f"global_step4/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
WRITTEN = {
    "ddp": [*COMMON, "optimizer.pt", "model.safetensors"],
    "zero1": [*COMMON, "latest", *ZERO_STATES, "global_step4/mp_rank_00_model_states.pt"],
    "zero2": [*COMMON, "latest", *ZERO_STATES, "global_step4/mp_rank_00_model_states.pt"],
    "zero3": [
        *COMMON,
        "latest",
        *ZERO_STATES,
        *(f"global_step4/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in (0, 1)),
    ],
    "fsdp2": [*COMMON, "optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata"],
}


@pytest.mark.parametrize("strategy", WRITTEN)
def test_one_from_which_training_would_go_on_otherwise_is_not_sealed(strategy: str) -> None:
    needed = checkpoint_files.list_needed_files(strategy, 2, weights="*model*.safetensors")
    written = WRITTEN[strategy]
    checkpoint_files.require_files("here", needed, [*written, "zero_to_fp32.py"])
    for missing in written:
        with pytest.raises(StageError, match=r"here: no .* was saved"):
            checkpoint_files.require_files("here", needed, [name for name in written if name != missing])


def test_every_file_has_one_writer_whose_rank_stands_in_its_name() -> None:
    ranked = {
        "rng_state_1.pth": 1,
        "global_step4/zero_pp_rank_1_mp_rank_00_model_states.pt": 1,
        "global_step4/bf16_zero_pp_rank_12_mp_rank_00_optim_states.pt": 12,
        "global_step4/mp_rank_00_model_states.pt": 0,
        "pytorch_model_fsdp_0/__3_0.distcp": 3,
        "pytorch_model_fsdp_0/.metadata": 0,
        "rng_state.pth": 0,
        "optimizer.pt": 0,
    }
    assert {name: checkpoint_files.find_writer(name, 16) for name in ranked} == ranked
    assert checkpoint_files.find_writer("rng_state_3.pth", 2) == 0  # a stranger: the main process's, who refuses it


def test_processes_verify_about_as_many_bytes_each() -> None:
    digests = {name: name for name in "abcdef"}
    shares = checkpoints.share_out(digests, {"a": 100, "b": 40, "c": 30, "d": 30, "e": 1}, 2)
    assert [sorted(share) for share in shares] == [["a", "e", "f"], ["b", "c", "d"]]
    assert {name: digest for share in shares for name, digest in share.items()} == digests


def run_in_fork(home: Path, what: str, port: int, rank: int, answers: Any) -> None:
    """Saves or finds a checkpoint as one of two processes, and answers with what it did."""
    ranks = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    distributed.connect_on_cpu()
    digested: list[str] = []
    integrity.compute_sha256 = lambda path: digested.append(path.name) or compute_sha256(path)  # type: ignore[assignment, func-returns-value]
    found: Any = None
    if what == "find":
        found = checkpoints.find_newest_checkpoint(home, "ddp")
        found = (found.folder, found.damaged)
    else:
        folder = checkpoints.get_partial_folder(home, 5)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rng_state_{rank}.pth").write_bytes(b"%d" % rank * 100)
        if rank == 0:
            (folder / "trainer_state.json").write_text("{}")
        distributed.wait_for_all()
        if what == "die" and rank == 1:
            os._exit(9)
        digests = checkpoints.digest_own_files(folder)
        if rank == 0:
            checkpoints.publish_checkpoint(home, 5, digests, "ddp")
    answers.put((rank, found, sorted(digested)))
    answers.close()
    answers.join_thread()
    os._exit(0)


def in_two_processes(home: Path, what: str) -> list[tuple[int, Any, list[str]]]:
    """Runs `run_in_fork` in two processes that are connected, and returns the answers in the order of their ranks."""
    forks = multiprocessing.get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = forks.Queue()
    processes = [forks.Process(target=run_in_fork, args=(home, what, port, rank, answers)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == ([0, 0] if what != "die" else [1, 9])
    return sorted(answers.get() for _ in range(2 if what != "die" else 0))


@pytest.mark.skipif(sys.platform != "linux", reason="forks of a process with torch")
def test_each_process_digests_what_it_wrote_and_verifies_a_share(tmp_path: Path) -> None:
    in_two_processes(tmp_path, "die")  # before it has digested its shard: without it nothing is published
    assert not list(tmp_path.glob("checkpoint-*"))
    shares = [["rng_state_0.pth", "trainer_state.json"], ["rng_state_1.pth"]]
    assert [share for _, _, share in in_two_processes(tmp_path, "save")] == shares
    folder = tmp_path / "checkpoint-5"
    assert sorted(integrity.read_seal(folder)["files"]) == sorted(itertools.chain(*shares))
    found = in_two_processes(tmp_path, "find")
    assert [checkpoint for _, checkpoint, _ in found] == [(folder, [])] * 2
    assert sorted(itertools.chain(*(share for _, _, share in found))) == sorted(itertools.chain(*shares))
    assert all(share for _, _, share in found)
    flip(folder / "rng_state_1.pth")
    (_, first, _), (_, second, _) = in_two_processes(tmp_path, "find")
    assert first == second  # each knows what the other has found
    assert first[0] is None
    assert first[1][0].startswith(f"{folder}: rng_state_1.pth is not what was written")

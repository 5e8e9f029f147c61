"""Runs that are killed or asked to stop, and started again: they end with the uninterrupted bytes.

The uninterrupted run is asked for last: meanwhile another process of the test run can be making it.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.end_to_end.ladder import (
    KINDS,
    SFT,
    TRACES,
    children,
    metrics_without_measured,
    outputs,
    run,
    start,
    wait_for,
    wait_for_end,
    weights,
    write_recipe,
)

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a killed run takes its children along on Linux only")


def kill_at(sign: str, recipe: Path, home: Path) -> None:
    """Starts the run and kills it once a path matches `sign`; what it started has to end too."""
    process = start(recipe, home)
    wait_for(sign, home, process)
    family = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for_end(family)


@on_linux
@pytest.mark.slow(seconds=60)
def test_killed_in_every_stage_and_resumed_equals_uninterrupted(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, *KINDS)
    for sign in (
        "store/sft-*/checkpoints/checkpoint-*",
        "store/dpo-*/checkpoints/checkpoint-*",
        "store/rollout-*/parts/*.jsonl",
        "store/evaluate-*/parts/*/*.jsonl",
        "store/grpo-*/checkpoints/checkpoint-*",
    ):
        kill_at(sign, recipe, tmp_path)
        kind = sign.split("/")[1]
        assert not list(tmp_path.glob(f"store/{kind}/manifest.json")), f"{kind} was done before it was killed"
    run(recipe, tmp_path)
    trained = request.getfixturevalue("trained")
    whole, resumed = outputs(trained), outputs(tmp_path)
    assert resumed == {name: whole[name] for name in resumed}
    assert len(list(tmp_path.glob("store/*/manifest.json"))) == len(KINDS)
    kinds = ("sft", "dpo", "grpo")
    assert metrics_without_measured(tmp_path, *kinds) == metrics_without_measured(trained, *kinds)


@pytest.mark.slow(seconds=20)
def test_asked_to_stop_it_saves_and_ends_with_75(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, TRACES, SFT, checkpoint_every=1000)
    process = start(recipe, tmp_path)
    wait_for("store/sft-*/progress.json", tmp_path, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "run again to go on" in said
    assert list(tmp_path.glob("store/sft-*/checkpoints/checkpoint-*/complete.json"))
    run(recipe, tmp_path)
    whole, resumed = outputs(request.getfixturevalue("trained")), outputs(tmp_path)
    assert resumed == {name: whole[name] for name in resumed}


@on_linux
@pytest.mark.slow(seconds=30)
def test_two_processes_die_with_their_run_and_go_on(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, TRACES, SFT, processes=2)
    kill_at("store/sft-*/checkpoints/checkpoint-*", recipe, tmp_path)
    run(recipe, tmp_path)
    one, two = (weights(home, "sft") for home in (tmp_path, request.getfixturevalue("trained_by_two")))
    assert all(torch.equal(one[name], two[name]) for name in one)

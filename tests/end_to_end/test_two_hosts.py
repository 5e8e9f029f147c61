"""Stages on two hosts make what they make on one, also when a host dies in the middle and comes back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.end_to_end import hosts, ladder
from tests.end_to_end.ladder import SHARED, metrics_without_measured, stage, weights

LONG_SFT = {**ladder.SFT, "batch": 8, "epochs": 8}
RL = {**ladder.GRPO, "steps": 8}
FEW_SFT, UPDATES_GRPO = (one for one in SHARED if one["name"] in ("few_sft", "updates_grpo"))


@pytest.fixture(scope="module", autouse=True)
def _needs_hosts() -> None:
    if obstacle := hosts.find_obstacle():
        pytest.skip(f"SEVERAL NODES ARE NOT TESTED: {obstacle}")


def read_said(folder: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(folder.glob("host*.txt")))


def expect_end(folder: Path, codes: list[int], *processes: "subprocess.Popen[str]") -> str:
    """Waits for runs to end with these exit codes, and returns what they printed."""
    for process in processes:
        process.wait(timeout=900)
    assert [process.returncode for process in processes] == codes, read_said(folder)
    return read_said(folder)


def assert_same(one: Path, other: Path, name: str) -> None:
    """A stage's weights and logs are bit for bit the same."""
    left, right = weights(one, name), weights(other, name)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[tensor], right[tensor]) for tensor in left), name
    assert metrics_without_measured(one, name) == metrics_without_measured(other, name)


@pytest.mark.slow(seconds=40)
def test_two_hosts_make_what_two_processes_make(tmp_path: Path, trained_by_two: Path) -> None:
    recipe = ladder.write_recipe(tmp_path, ladder.TRACES, ladder.PROBLEMS, FEW_SFT, UPDATES_GRPO, nodes=2)
    with hosts.connect_two_hosts(tmp_path) as (_, both):
        said = expect_end(tmp_path, [0, 0], *(hosts.start_run(host, recipe, tmp_path) for host in both))
    assert "node 1 (host1, 10.231.77.2) has joined" in said
    for name in ("few_sft", "updates_grpo"):
        assert_same(tmp_path, trained_by_two, name)
        assert (stage(tmp_path, name) / "nodes" / "log.1.txt").exists()


@pytest.mark.evidence
def test_the_doctor_tries_two_hosts(tmp_path: Path) -> None:
    line = [sys.executable, "-P", "-m", "qwen_align.cli", "doctor", "--home", str(tmp_path)]
    with hosts.connect_two_hosts(tmp_path) as (network, both):
        options = ["--rendezvous", f"{network.get_address(0)}:{hosts.PORT}", "--node-rank"]
        logs = [tmp_path / f"host{host.number}.txt" for host in both]
        started = [host.start([*line, *options, str(host.number)], log) for host, log in zip(both, logs, strict=True)]
        said = expect_end(tmp_path, [0, 0], *started)
    assert said.count("host0, host1: the same versions") == 2
    assert said.count("64 files that 2 nodes created at once: each by one alone") == 2
    assert said.count("2 processes on 2 nodes: sums right") == 2
    assert not list(tmp_path.glob(".doctor-*"))


@pytest.fixture(scope="module")
def uninterrupted(made_once: Callable[..., Path]) -> Path:
    """The home of a run of the stages that are killed below, on one host in two processes."""

    def make(folder: Path) -> None:
        stages = (ladder.TRACES, ladder.PROBLEMS, LONG_SFT, RL)
        ladder.run(ladder.write_recipe(folder, *stages, processes=2, checkpoint_every=2), folder)

    return made_once("uninterrupted_by_two", make)


def wait_for(pattern: str, home: Path, *processes: "subprocess.Popen[str]") -> None:
    """Until a path under `home` matches; the runs have to go on for so long."""
    deadline = time.monotonic() + 300
    while not list(home.glob(pattern)):
        assert all(process.poll() is None for process in processes), read_said(home)
        assert time.monotonic() < deadline, f"{pattern} never came: {read_said(home)}"
        time.sleep(0.005)


def wait_until_said(text: str, folder: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while text not in read_said(folder):
        assert time.monotonic() < deadline, f"nobody said '{text}': {read_said(folder)}"
        time.sleep(0.02)


@pytest.mark.evidence
@pytest.mark.parametrize("killed", [1, 0])
@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_host_that_dies_and_comes_back_changes_nothing(
    name: str, killed: int, tmp_path: Path, uninterrupted: Path
) -> None:
    recipe = ladder.write_recipe(tmp_path, ladder.TRACES, ladder.PROBLEMS, LONG_SFT, RL, nodes=2, checkpoint_every=2)
    with hosts.connect_two_hosts(tmp_path) as (network, both):
        runs = [hosts.start_run(host, recipe, tmp_path) for host in both]
        wait_for(f"store/{name}-*/checkpoints/checkpoint-4", tmp_path, *runs)
        both[killed].kill()
        runs[killed].wait(timeout=60)
        wait_until_said("is gone", tmp_path)
        manifests = set(tmp_path.glob(f"store/{name}-*/manifest.json"))
        assert not manifests, "it was killed too late"
        both[killed] = network.start_host(killed, tmp_path)
        runs[killed] = hosts.start_run(both[killed], recipe, tmp_path)
        said = expect_end(tmp_path, [0, 0], *runs)
    if killed == 1:
        assert "node 1 (host1, 10.231.77.2) is gone: the stage was stopped on all nodes" in said
    for each in ("sft", "grpo"):
        assert_same(tmp_path, uninterrupted, each)


@pytest.mark.evidence
def test_a_node_that_never_comes_is_waited_for_so_long_and_named(tmp_path: Path) -> None:
    recipe = ladder.write_recipe(tmp_path, ladder.TRACES, FEW_SFT, nodes=2)
    with hosts.connect_two_hosts(tmp_path) as (_, both):
        said = expect_end(tmp_path, [75], hosts.start_run(both[0], recipe, tmp_path, "--node-wait", "3"))
        assert "node 1 did not come within 3 s (--node-wait)" in said
        said = expect_end(tmp_path, [75], hosts.start_run(both[1], recipe, tmp_path, "--node-wait", "3"))
        assert "node 0 did not come within 3 s (--node-wait): 10.231.77.1:29400: Connection refused" in said


@pytest.mark.evidence
def test_a_host_that_is_cut_off_is_given_up_after_it_has_given_up(tmp_path: Path, uninterrupted: Path) -> None:
    """So that two never write: the others give node 0 up after 30 s of silence, and it them after 60."""
    recipe = ladder.write_recipe(tmp_path, ladder.TRACES, ladder.PROBLEMS, LONG_SFT, RL, nodes=2, checkpoint_every=2)
    with hosts.connect_two_hosts(tmp_path) as (network, both):
        runs = [hosts.start_run(host, recipe, tmp_path) for host in both]
        wait_for("store/sft-*/checkpoints/checkpoint-4", tmp_path, *runs)
        both[1].cut_off()
        began = time.monotonic()
        wait_until_said("node 0 at 10.231.77.1:29400 is gone", tmp_path, 60)
        gave_up_node_0 = time.monotonic() - began
        wait_until_said("node 1 (host1, 10.231.77.2) is gone", tmp_path, 60)
        assert 20 < gave_up_node_0 < 45 < time.monotonic() - began < 75
        both[1].kill()
        runs[1].wait(timeout=60)
        both[1] = network.start_host(1, tmp_path)
        runs[1] = hosts.start_run(both[1], recipe, tmp_path)
        expect_end(tmp_path, [0, 0], *runs)
    for each in ("sft", "grpo"):
        assert_same(tmp_path, uninterrupted, each)


@pytest.mark.evidence
def test_a_stop_on_any_host_stops_all_and_goes_on_later(tmp_path: Path, uninterrupted: Path) -> None:
    recipe = ladder.write_recipe(tmp_path, ladder.TRACES, ladder.PROBLEMS, LONG_SFT, RL, nodes=2, checkpoint_every=2)
    with hosts.connect_two_hosts(tmp_path) as (_, both):
        for stopped, name in ((1, "sft"), (0, "grpo")):
            runs = [hosts.start_run(host, recipe, tmp_path) for host in both]
            wait_for(f"store/{name}-*/checkpoints/checkpoint-2", tmp_path, *runs)
            os.kill(hosts.find_command(runs[stopped].pid), signal.SIGTERM)
            expect_end(tmp_path, [75, 75], *runs)
        expect_end(tmp_path, [0, 0], *(hosts.start_run(host, recipe, tmp_path) for host in both))
    for each in ("sft", "grpo"):
        assert_same(tmp_path, uninterrupted, each)


@pytest.mark.evidence
def test_a_node_with_another_recipe_is_refused_and_an_error_ends_the_run_everywhere(tmp_path: Path) -> None:
    recipe = ladder.write_recipe(tmp_path, ladder.TRACES, FEW_SFT, nodes=2)
    with hosts.connect_two_hosts(tmp_path) as (_, both):
        first = hosts.start_run(both[0], recipe, tmp_path)
        wait_for("nodes.secret", tmp_path, first)
        other = hosts.start_run(both[1], recipe, tmp_path, "--set", "stages.few_sft.learning_rate=1e-4")
        said = expect_end(tmp_path, [2], other)
        assert "stage 'few_sft' has another key there: its settings, or files that it reads, differ" in said
        # A row that is too long is an error of the stage's own: no node begins again.
        too_long = ["--set", "stages.few_sft.max_tokens=8"]
        os.kill(hosts.find_command(first.pid), signal.SIGTERM)
        expect_end(tmp_path, [75], first)
        runs = [hosts.start_run(host, recipe, tmp_path, *too_long) for host in both]
        said = expect_end(tmp_path, [3, 3], *runs)
    assert said.count("nothing to train on") == 2

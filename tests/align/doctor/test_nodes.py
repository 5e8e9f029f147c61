"""Nodes meet, try their common home and compare versions; all of them say what was found. They are threads here."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_align.align.commands.doctor import build_scope
from qwen_align.align.doctor import nodes, peers, trials
from qwen_align.align.doctor.devices import Probed
from qwen_align.align.doctor.finding import Finding
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.coordinator import find_free_port
from qwen_align.align.pipeline.node_place import Rendezvous

PLAIN = Probed([], [])  # neither GPUs nor a way to exchange sums: torch is not started
SLURM = {"SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[3-4]", "SLURM_STEP_NUM_NODES": "2"}


def run_nodes(*homes: Path, probed: tuple[Probed, ...] = (PLAIN, PLAIN)) -> list[list[Finding]]:
    """Runs a node in each home, and returns the findings of each."""
    port = find_free_port()
    findings: list[list[Finding]] = [[] for _ in homes]

    def work(node: int) -> None:
        do: Callable[..., object] = nodes.lead_nodes if node == 0 else nodes.follow_node_0
        findings[node].extend(do(homes[node], Rendezvous(node, len(homes), "127.0.0.1", port), probed[node]))  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(node,)) for node in range(len(homes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return findings


def test_three_nodes_with_one_home_are_well_and_all_say_so(tmp_path: Path) -> None:
    first, *others = run_nodes(*[tmp_path] * 3, probed=(PLAIN,) * 3)
    assert {finding.state for finding in first} == {"ok"}
    assert [finding.what for finding in first] == ["nodes", "visibility", "exclusive", "rename", "fsync", "clocks"]
    assert "64 files that 3 nodes created at once" in first[2].found
    assert others == [first, first]
    assert [path.name for path in tmp_path.iterdir()] == ["nodes.secret"]


def test_other_versions_and_fewer_gpus_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = trials.Trials.describe

    def describe_other(self: trials.Trials) -> dict[str, object]:
        said = describe(self)
        other = {"trl": "1.15.0"} if threading.current_thread().name == "other" else {}
        return {**said, "versions": {**said["versions"], **other}}

    monkeypatch.setattr(trials.Trials, "describe", describe_other)
    monkeypatch.setattr(nodes, "serve", _serve_as_other)
    first, second = run_nodes(tmp_path, tmp_path, probed=(Probed([1], []), Probed([1, 1], [])))
    assert first[0].is_bad
    assert "trl 1.15.0 on node 1, 1.16.0 on node 0" in first[0].found
    assert first[-1].found == "another number of GPUs on some: node 0 1, node 1 2"
    assert second == first


def _serve_as_other(connection: peers.Connection, own: trials.Trials) -> dict[str, object] | None:
    threading.current_thread().name = "other"
    return trials.serve(connection, own)


def test_nodes_whose_homes_are_not_one_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MEETING_S", 1.0)
    monkeypatch.setattr(peers.meet_nodes.__wrapped__, "__defaults__", (1.0,))  # type: ignore[attr-defined]
    monkeypatch.setattr(peers.join_node_0, "__defaults__", (1.0,))
    homes = tmp_path / "one", tmp_path / "other"
    for home in homes:
        home.mkdir()
    (first,), (second,) = run_nodes(*homes)
    assert first.is_bad
    assert first.found == "of 2 nodes 1 did not come within 1 s"
    assert second.is_bad
    assert "nodes.secret, which node 0 writes, is not seen: do both have the same --home?" in second.found
    peers.make_secret(homes[1])
    _, (second,) = run_nodes(*homes)
    assert "do both see the same --home?" in second.found


def test_the_place_is_that_of_the_options_or_of_slurm() -> None:
    def build(*options: object, **environment: str) -> Rendezvous | None:
        return build_scope(*options, environment, with_network=True).place  # type: ignore[arg-type, call-arg]

    assert build(None, None, None) is None
    assert build(None, 1, "gpu01:29400") == Rendezvous(1, 2, "gpu01", 29400)
    assert build(3, 2, "gpu01:29400") == Rendezvous(2, 3, "gpu01", 29400)
    assert build(None, None, None, **SLURM, SLURM_STEP_NUM_TASKS="2") == Rendezvous(1, 2, "gpu3", 20_000)
    assert build(None, None, None, SLURM_JOB_ID="1", SLURM_JOB_NODELIST="gpu[3-4]") is None  # the batch script itself
    with pytest.raises(RecipeError, match="--nodes: 4: start the same command on every node"):
        build(4, None, None)
    with pytest.raises(RecipeError, match="--node-rank 2: the nodes are 0 to 1, as --nodes is 2"):
        build(None, 2, "gpu01:29400")
    with pytest.raises(RecipeError, match="--no-network: several nodes are checked over it"):
        build_scope(2, 0, "gpu01:29400", {}, with_network=False)

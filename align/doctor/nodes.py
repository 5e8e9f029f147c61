"""Leads the doctor's checks between several nodes from node 0, and takes part in them on the others."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from qwen_align.align.doctor.all_reduce import LIMIT_S, Exchange, judge_exchange, run_processes
from qwen_align.align.doctor.devices import Probed
from qwen_align.align.doctor.file_system import check_file_system, make_trial_folder
from qwen_align.align.doctor.finding import Finding
from qwen_align.align.doctor.peers import Peer, PeerLost, ask_all, join_node_0, meet_nodes, start_peer_beside
from qwen_align.align.doctor.trials import Trials, serve
from qwen_align.align.pipeline.coordinator import find_free_port
from qwen_align.align.pipeline.node_place import ALONE, Rendezvous

_TASK_S = 60.0
_EXCHANGE_S = LIMIT_S + 30.0
_ADVICE = (
    "start the same command on every node, with one --home on a shared file system; is the port open between them?"
)


def check_between_processes(home: Path) -> Iterator[Finding]:
    """Yields findings of the home's file system, tried by this process and a second one on this machine."""
    try:
        with make_trial_folder(home) as folder, start_peer_beside(folder) as peer:
            yield from check_file_system(folder, [peer])
    except OSError as error:
        yield Finding("home", f"{error.filename}: {error.strerror}", "name another with --home", is_bad=True)


def check_exchange_here(probed: Probed) -> Iterator[Finding]:
    """Yields findings of sums over gloo between two processes, and over NCCL between all GPUs of this machine."""
    for exchange in _list_exchanges([probed], ALONE.address):
        yield from judge_exchange(exchange, [run_processes(**exchange.build_task(0))])


def _list_exchanges(nodes: Sequence[Probed], address: str) -> Iterator[Exchange]:
    """Yields what is to be tried between nodes, of which each has said what it has."""
    if all("gloo" in node.backends for node in nodes):
        yield Exchange("gloo", [1 if len(nodes) > 1 else 2] * len(nodes), address, find_free_port())
    if all(node.gpu_bytes and "nccl" in node.backends for node in nodes):
        yield Exchange("nccl", [len(node.gpu_bytes) for node in nodes], address, find_free_port())


def lead_nodes(home: Path, place: Rendezvous, probed: Probed) -> Iterator[Finding]:
    """Yields on node 0 the findings between all nodes, which the others are told at the end."""
    findings: list[Finding] = []
    try:
        with meet_nodes(home, place) as peers:
            with make_trial_folder(home) as folder:
                for finding in _check_between_nodes(Trials(folder, probed._asdict()), place, peers):
                    findings.append(finding)
                    yield finding
            for peer in peers:
                peer.send({"do": "end", "findings": [finding.to_record() for finding in findings]})
    except (PeerLost, OSError) as error:
        yield Finding("nodes", str(error), _ADVICE, is_bad=True)


def _check_between_nodes(trials: Trials, place: Rendezvous, peers: Sequence[Peer]) -> Iterator[Finding]:
    for peer in peers:
        peer.send({"do": "enter", "name": trials.folder.name})
    for peer in peers:
        peer.receive(_TASK_S)
    described = ask_all(peers, [{"do": "describe"}] * len(peers), trials.describe, _TASK_S)
    yield from _compare_versions(described)
    yield from check_file_system(trials.folder, peers, trials)
    found = [Probed(**one["devices"]) for one in described]
    if len({len(one.gpu_bytes) for one in found}) > 1:
        counts = ", ".join(f"node {node} {len(one.gpu_bytes)}" for node, one in enumerate(found))
        advice = "runtime.processes is the same on every node: it can be no more than the fewest"
        yield Finding("nodes", f"another number of GPUs on some: {counts}", advice)
    for exchange in _list_exchanges(found, place.host):
        tasks = [{"do": "all_reduce", **exchange.build_task(node)} for node in range(1, place.nodes)]
        task = exchange.build_task(0)
        yield from judge_exchange(exchange, ask_all(peers, tasks, partial(run_processes, **task), _EXCHANGE_S))


def _compare_versions(described: Sequence[dict[str, dict[str, str | None]]]) -> Iterator[Finding]:
    """Yields whether all nodes have the same versions: another one makes another result, and is refused by a run."""
    first = described[0]["versions"]
    others = [
        f"{name} {one['versions'].get(name)} on node {node}, {version} on node 0"
        for node, one in enumerate(described)
        for name, version in first.items()
        if one["versions"].get(name) != version
    ]
    hosts = ", ".join(str(one["host"]) for one in described)
    if others:
        yield Finding("nodes", f"{hosts}: {'; '.join(others)}", "install the same versions on every node", is_bad=True)
    else:
        yield Finding("nodes", f"{hosts}: the same versions")


def follow_node_0(home: Path, place: Rendezvous, probed: Probed) -> Iterator[Finding]:
    """Takes part in what node 0 leads, and yields the findings that it tells."""
    try:
        connection = join_node_0(home, place)
        over = serve(connection, Trials(home, probed._asdict()))
    except PeerLost as error:
        yield Finding("nodes", str(error), _ADVICE, is_bad=True)
        return
    if over is None or "findings" not in over:
        yield Finding("nodes", "node 0 has ended before all was checked", "its own output says why", is_bad=True)
        return
    yield from map(Finding.from_record, over["findings"])

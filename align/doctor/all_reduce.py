"""Has processes sum a tensor over gloo or NCCL, on one machine or several, within a time limit."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from qwen_align.align.doctor.finding import Finding
from qwen_align.align.pipeline.node_place import NodePlace

LIMIT_S = 90.0  # for imports of torch too, which took 20 s in two processes on two cores with a load of 30
_GRACE_S = 5.0  # for the other processes to say what ended them, once one has failed
_LOOK_S = 0.05


class Exchange(NamedTuple):
    """What is to be tried: by which backend, in how many processes on each node, and where the first listens."""

    backend: str
    processes: Sequence[int]
    address: str
    port: int

    def build_task(self, node: int) -> dict[str, Any]:
        """Returns the arguments of `run_processes` for a node."""
        return {
            "backend": self.backend,
            "node": node,
            "nodes": len(self.processes),
            "first_rank": sum(self.processes[:node]),
            "n_local": self.processes[node],
            "world": sum(self.processes),
            "address": self.address,
            "port": self.port,
        }


def run_processes(
    backend: str, node: int, nodes: int, first_rank: int, n_local: int, world: int, **place: Any
) -> list[dict[str, Any]]:
    """Runs this machine's processes of an exchange and returns the last that each of them said.

    `phase`: imports, meets, sums or done; `error`: what ended it. Those that do not end within the limit are killed.
    """
    environment = {**os.environ, **NodePlace(node, nodes, place["address"], place["port"]).name_interface()}
    started = []
    for number in range(n_local):
        task = {"backend": backend, "rank": first_rank + number, "world": world, "device": number, **place}
        line = [sys.executable, "-P", "-m", "qwen_align.align.doctor.all_reduce_process", json.dumps(task)]
        started.append(
            subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        )
    deadline = time.monotonic() + LIMIT_S
    try:
        while any(process.poll() is None for process in started) and time.monotonic() < deadline:
            if any(process.poll() for process in started):
                deadline = min(deadline, time.monotonic() + _GRACE_S)
            time.sleep(_LOOK_S)
        return [_read_last(process) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _read_last(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Returns the last line that a process has printed, after ending it."""
    process.kill()
    out: IO[str] | None = process.stdout
    lines = out.read().splitlines() if out else []
    said = [json.loads(line) for line in lines if line.startswith("{")]
    return said[-1] if said else {"phase": "starts"}


def judge_exchange(exchange: Exchange, said: Sequence[Sequence[dict[str, Any]]]) -> Iterator[Finding]:
    """Yields what the processes of each node have said of an exchange."""
    name, n_nodes = exchange.backend, len(exchange.processes)
    world = sum(exchange.processes)
    where = f"{world} process{'es' if world > 1 else ''}" + (f" on {n_nodes} nodes" if n_nodes > 1 else "")
    ranked = [(node, one) for node, processes in enumerate(said) for one in processes]
    failed = next((item for item in ranked if "error" in item[1]), None)
    failed = failed or next((item for item in ranked if item[1]["phase"] != "done"), None)
    if failed is None:
        slowest = max((one for _, one in ranked), key=lambda one: one["seconds"])
        speed = slowest["bytes"] / slowest["seconds"] / 1e9
        found = f"{where}: sums right, {slowest['bytes'] / 1e6:.0f} MB in {slowest['seconds']:.3f} s ({speed:.2f} GB/s)"
        yield Finding(name, found if world > 1 else f"{found}: nobody to exchange with")
        return
    node, last = failed
    at = f" on node {node}" if n_nodes > 1 else ""
    reason = last.get("error") or f"no end within {LIMIT_S:.0f} s"
    yield Finding(
        name,
        f"{where}: a process{at} failed while it {last['phase']}: {reason}",
        _advise(exchange, last["phase"]),
        True,
    )


def _advise(exchange: Exchange, phase: str) -> str:
    """Returns what to do about an exchange that failed in a phase."""
    several = len(exchange.processes) > 1
    interface = f"{exchange.backend.upper()}_SOCKET_IFNAME"
    if phase in ("starts", "imports"):
        return "does `python -c 'import torch'` end? On a machine that is very busy run doctor again"
    if phase == "meets" and several:
        where = f"{exchange.address}:{exchange.port}"
        return f"is {where} open between the nodes? Set {interface} to the interface that joins them"
    if phase == "compares":
        return "sums are wrong: do not train here. Hardware or driver; try NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1"
    if exchange.backend == "nccl":
        return f"run with NCCL_DEBUG=INFO; try NCCL_P2P_DISABLE=1, NCCL_IB_DISABLE=1, {interface}"
    return f"ports that gloo chooses have to be open; set {interface} to an interface whose address is reached" + (
        " from the other nodes" if several else ", such as lo"
    )

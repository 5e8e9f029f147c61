"""Implements `qwen-align doctor`, which checks this machine, or several nodes. torch is imported only in children."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from qwen_align.align.doctor.devices import DeviceProbe, check_fit
from qwen_align.align.doctor.engines import check_engines
from qwen_align.align.doctor.finding import Finding
from qwen_align.align.doctor.libraries import check_libraries
from qwen_align.align.doctor.machine import check_home, check_sandbox, check_system
from qwen_align.align.doctor.nodes import check_between_processes, check_exchange_here, follow_node_0, lead_nodes
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.node_place import Rendezvous, find_rendezvous


class Scope(NamedTuple):
    """What is checked: this machine's place among several nodes, None for it alone, and whether processes exchange."""

    place: Rendezvous | None = None
    with_network: bool = True


def build_scope(
    nodes: int | None,
    node_rank: int | None,
    rendezvous: str | None,
    environment: Mapping[str, str],
    *,
    with_network: bool,
) -> Scope:
    """Builds the scope from the options, or from Slurm's variables. Raises RecipeError where options do not fit."""
    if nodes is None:
        nodes = 2 if node_rank is not None or rendezvous is not None else _count_slurm_nodes(environment)
    place = find_rendezvous(nodes, node_rank, rendezvous, environment, setting="--nodes")
    if place and not with_network:
        raise RecipeError("--no-network: several nodes are checked over it; leave out one of the two")
    return Scope(place, with_network)


def _count_slurm_nodes(environment: Mapping[str, str]) -> int:
    """Returns the number of nodes of the step of `srun` that this runs in, 1 outside one."""
    is_step = "SLURM_STEP_NODELIST" in environment and "SLURM_NODEID" in environment
    return int(environment.get("SLURM_STEP_NUM_NODES", "1")) if is_step else 1


def examine_machine(home: Path, scope: Scope) -> Iterator[Finding]:
    """Runs all checks and yields their findings, each as soon as it is there. Each has a time limit of its own."""
    probe = DeviceProbe()  # torch takes seconds to import, in which the others go on
    yield from check_system()
    yield from check_libraries()
    yield from check_engines()
    yield from check_sandbox()
    homes = list(check_home(home))
    yield from homes
    is_home_good = not any(finding.is_bad for finding in homes)
    if is_home_good and scope.place is None:
        yield from check_between_processes(home)
    probed, devices = probe.collect()
    yield from devices
    if probed is None:
        return
    yield from check_fit(probed)
    if scope.place is None and scope.with_network:
        yield from check_exchange_here(probed)
    elif scope.place is not None and is_home_good:
        work = lead_nodes if scope.place.node == 0 else follow_node_0
        yield from work(home, scope.place, probed)


def format_json(findings: Iterable[Finding]) -> str:
    """Formats findings as a JSON object, with whether none of them prevents a run."""
    listed = list(findings)
    is_well = not any(finding.is_bad for finding in listed)
    return json.dumps({"is_well": is_well, "findings": [finding.to_record() for finding in listed]}, indent=1)

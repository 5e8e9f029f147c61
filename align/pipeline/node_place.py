"""Says which of a run's nodes this one is, and where the nodes meet: by options of `run`, or as Slurm says it."""

import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from qwen_align.align.context import NODES
from qwen_align.align.errors import RecipeError

DEFAULT_PORT = 29400  # torchrun's
_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface


class Rendezvous(NamedTuple):
    """This node's number among those of a run, and the address and port at which node 0 listens for the others."""

    node: int
    nodes: int
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NodePlace(NamedTuple):
    """A node's place in a stage: its number among the stage's nodes, and where torch's store listens, on node 0.

    Port 0: one that is free.
    """

    node: int
    nodes: int
    address: str
    port: int

    def locate_log(self, folder: Path) -> Path:
        """Returns the file in a stage's folder that processes on this node write to, after making its folder."""
        if self.node == 0:
            return folder / "log.txt"
        (folder / NODES).mkdir(exist_ok=True)
        return folder / NODES / f"log.{self.node}.txt"

    def name_interface(self) -> dict[str, str]:
        """Returns the environment variable that makes gloo listen where the other nodes can reach it.

        Gloo takes the address that this machine's name resolves to, which is often 127.0.0.1 or none at all. What the
        user has set stays.
        """
        if self.nodes == 1 or "GLOO_SOCKET_IFNAME" in os.environ:
            return {}
        interface = find_interface(self.address, self.port)
        return {"GLOO_SOCKET_IFNAME": interface} if interface else {}


ALONE = NodePlace(0, 1, "127.0.0.1", 0)


def find_rendezvous(
    nodes: int,
    node_rank: int | None,
    rendezvous: str | None,
    environment: Mapping[str, str],
    *,
    is_needed: bool = True,
    setting: str = "runtime.nodes",
) -> Rendezvous | None:
    """Finds this node's place among the `nodes` that a recipe asks for. Returns None where it asks for one.

    `is_needed`: false where all that several nodes run is stored, so that none of them has to be said. `setting`: what
    asks for them. Options come
    before Slurm's variables. Raises RecipeError where neither says it, or where they do not fit the recipe.
    """
    if nodes == 1:
        if node_rank is not None or rendezvous is not None:
            raise RecipeError(f"--node-rank and --rendezvous: one node is asked for; set {setting}")
        return None
    if (node_rank is None) != (rendezvous is None):
        given, missing = ("--node-rank", "--rendezvous") if rendezvous is None else ("--rendezvous", "--node-rank")
        raise RecipeError(f"{given}: needs {missing} too")
    if node_rank is not None and rendezvous is not None:
        if not 0 <= node_rank < nodes:
            raise RecipeError(f"--node-rank {node_rank}: the nodes are 0 to {nodes - 1}, as {setting} is {nodes}")
        return Rendezvous(node_rank, nodes, *parse_address(rendezvous))
    found = _ask_slurm(nodes, environment, setting)
    if found is None and is_needed:
        raise RecipeError(
            f"{setting}: {nodes}: start the same command on every node, with --node-rank 0 to {nodes - 1} and "
            "--rendezvous HOST:PORT, node 0's; or with srun. `qwen-align launch` writes files that do either"
        )
    return found


def parse_address(text: str) -> tuple[str, int]:
    """Parses HOST:PORT or [IPV6]:PORT. Raises RecipeError for anything else."""
    matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/@]+)):(\d{1,5})", text)
    if not matched or not 0 < int(matched[3]) < 65_536:
        raise RecipeError(f"--rendezvous {text}: has to be HOST:PORT of node 0, such as gpu01:{DEFAULT_PORT}")
    return matched[1] or matched[2], int(matched[3])


def _ask_slurm(nodes: int, environment: Mapping[str, str], setting: str) -> Rendezvous | None:
    """Returns this node's place by the variables of `srun`. Returns None outside it.

    Raises RecipeError where the step has another number of nodes, or several tasks on one.
    """
    names = environment.get("SLURM_STEP_NODELIST", "")
    if not names or "SLURM_NODEID" not in environment:
        return None
    n_given, n_tasks = (int(environment.get(f"SLURM_STEP_NUM_{name}", nodes)) for name in ("NODES", "TASKS"))
    if (n_given, n_tasks) != (nodes, nodes):
        raise RecipeError(
            f"{setting}: {nodes}, but srun has started {n_tasks} tasks on {n_given} nodes; it has to be one on "
            f"each: srun --nodes={nodes} --ntasks-per-node=1"
        )
    port = 20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 10_000  # another for each of a machine's jobs
    return Rendezvous(int(environment["SLURM_NODEID"]), nodes, read_first_host(names), port)


def read_first_host(names: str) -> str:
    """Returns the first of Slurm's list of nodes, such as `gpu[007-009,12],cpu3`: here gpu007."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", names)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else names)


def find_interface(host: str, port: int) -> str | None:
    """Returns the network interface through which this machine reaches a host. Returns None where it is not IPv4.

    Nothing is sent: connecting a datagram socket only looks up the route.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port or DEFAULT_PORT))
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                except OSError:  # it has no address
                    continue
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    except OSError:
        return None
    return None

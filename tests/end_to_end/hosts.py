"""Two hosts on one machine: each a network, UTS, PID and mount namespace with its own /tmp and /dev/shm.

They are connected by a switch in a fourth network namespace, and share one folder, at the same path as outside. Nothing
leaves these namespaces: they have no other network, and their addresses are their own.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PORT = 29_400
NEEDED = ("unshare", "nsenter", "ip", "mount", "setpriv")
_UNSHARE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child", "--fork"]  # ends with the test
_NETWORK = "10.231.77"  # of addresses that only these namespaces have


def find_obstacle() -> str | None:
    """Says why hosts cannot be made here. Returns None where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux may make network namespaces"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"{missing[0]} is not installed"
    try:
        with Network() as network, network.start_host(0, Path("/")):
            return None
    except (subprocess.CalledProcessError, OSError) as error:
        return f"namespaces are not allowed here: {getattr(error, 'stderr', error)}"


class Host:
    """A host: the first process of its namespaces, with which all others in it end."""

    def __init__(self, number: int, process: "subprocess.Popen[str]") -> None:
        self.number, self._process = number, process
        self.pid = _find_only_child(process.pid)

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, line: list[str], log: Path, **variables: str) -> "subprocess.Popen[str]":
        """Starts a command in the host, with its output in `log`."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-n", "-u", "-p", f"--wd={log.parent}", "--"]
        environment = {**os.environ, "HOME": "/tmp", "OMP_NUM_THREADS": "1", **variables}
        with log.open("a") as output:
            return subprocess.Popen(
                [*enter, *line], stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, env=environment
            )

    def cut_off(self) -> None:
        """Unplugs the host: nothing comes or goes, and nobody is told."""
        _run("nsenter", "-t", str(self.pid), "-n", "ip", "link", "set", "eth0", "down")

    def kill(self) -> None:
        """Kills all processes of the host at once, as when its power fails."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()


class Network:
    """The switch that hosts are plugged into, in a network namespace of its own."""

    def __enter__(self) -> "Network":
        self._n_ports = 0
        self._process = subprocess.Popen([*_UNSHARE, "--net", "sleep", "infinity"])
        self._pid = _find_only_child(self._process.pid)
        self._run("ip", "link", "add", "switch", "type", "bridge")
        self._run("ip", "link", "set", "switch", "up")
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self._process.wait()

    @staticmethod
    def get_address(number: int) -> str:
        """Returns the address of a host."""
        return f"{_NETWORK}.{number + 1}"

    def start_host(self, number: int, shared: Path) -> Host:
        """Makes a host that shares a folder with the others, and plugs it in."""
        folder = shlex.quote(str(shared))
        script = (
            f"mount --make-rprivate / && mount --bind {folder} /mnt && mount -t tmpfs none /tmp && "
            f"mount -t tmpfs none /dev/shm && mkdir -p {folder} && mount --bind /mnt {folder} && "
            f"hostname host{number} && ip link set lo up && exec sleep infinity"
        )
        if shared == Path("/"):
            script = "exec sleep infinity"
        line = [*_UNSHARE, "--net", "--uts", "--pid", "--mount", "--mount-proc"]
        host = Host(number, subprocess.Popen([*line, "bash", "-c", script], text=True))
        self._n_ports += 1
        port = f"port{self._n_ports}"  # that of a host that has died may be there for a moment
        self._run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._run("ip", "link", "set", port, "master", "switch", "up")
        inside = ("nsenter", "-t", str(host.pid), "-n", "ip")
        _run(*inside, "address", "add", f"{self.get_address(number)}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        _wait_for_name(host.pid, "sleep")
        return host

    def _run(self, *line: str) -> None:
        _run("nsenter", "-t", str(self._pid), "-n", *line)


def _run(*line: str) -> None:
    subprocess.run(line, check=True, capture_output=True, text=True, timeout=20)


def _find_only_child(pid: int) -> int:
    """Waits for the one child of a process, and returns its id."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise OSError(f"process {pid} has started none")


def find_command(pid: int) -> int:
    """Returns the id of the command that `start` has started, below nsenter, which sends no signal on."""
    return _find_only_child(pid)


def _wait_for_name(pid: int, name: str) -> None:
    """Waits until a process has become another program, which the script that prepares a host does last."""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/comm").read_text().strip() != name:
        if time.monotonic() > deadline:
            raise OSError("the host was not ready in time")
        time.sleep(0.01)


@contextlib.contextmanager
def connect_two_hosts(shared: Path) -> Iterator[tuple[Network, list[Host]]]:
    """Makes two hosts and ends them."""
    with Network() as network, network.start_host(0, shared) as first, network.start_host(1, shared) as second:
        hosts = [first, second]
        try:
            yield network, hosts
        finally:
            for host in hosts:
                host.kill()


def start_run(host: Host, recipe: Path, home: Path, *options: str) -> "subprocess.Popen[str]":
    """Starts a run on a host, which says what it prints to host0.txt or host1.txt beside the recipe."""
    line = [sys.executable, "-P", "-m", "qwen_align.cli", "run", str(recipe), "--home", str(home), *options]
    line += ["--node-rank", str(host.number), "--rendezvous", f"{Network.get_address(0)}:{PORT}"]
    return host.start(line, recipe.parent / f"host{host.number}.txt")

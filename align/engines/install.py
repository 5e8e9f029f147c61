"""Installs and removes engines: an environment is built aside from its lock, checked, and then renamed into place.

A kill leaves at most a folder `NAME.unfinished`, which nothing reads and the next installation clears away.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name

import qwen_align
from qwen_align.align.engines import locks
from qwen_align.align.engines.catalogue import ENGINES, Device, EngineBuild, EngineName
from qwen_align.align.engines.environments import (
    RECORD,
    UNFINISHED,
    EngineRecord,
    choose_engines_folder,
    examine_engine,
    get_python,
    read_record,
)
from qwen_align.align.engines.locks import Lock, LockedPackage
from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.pipeline.process_lifetime import PARENT_VARIABLE
from qwen_align.align.store.files import remove_tree, write_json
from qwen_align.align.store.lease import hold_lease
from qwen_align.align.store.lease_record import LeaseHeld

_REPLACED = ".replaced"
_POLL_S = 0.5
_END_S = 5.0  # to end by themselves what they have begun
_TEMPORARY = "tmp"  # in the unfinished folder: what pip unpacks and builds is cleared away with it
_HOST_GPU = Path("/dev/nvidiactl")  # NVIDIA's driver is loaded
_ASK_INTERPRETER = (
    "import json, platform, sys, sysconfig; print(json.dumps([sys.implementation.name, platform.python_version(), "
    "sysconfig.get_platform().replace('-', '_').replace('.', '_')]))"
)
# Starts a program that ends with this process: pip would go on writing into a folder that is cleared away. What it
# starts is of the engine's environment, where packages of ours have no place.
_END_TOGETHER = (
    "import os, sys; from qwen_align.align.pipeline.process_lifetime import die_with_parent; die_with_parent(); "
    "[os.environ.pop(name, None) for name in ('PYTHONPATH', 'PYTHONHOME')]; os.execv(sys.argv[1], sys.argv[1:])"
)
_LIST_INSTALLED = (
    "import importlib.metadata, json; "
    "print(json.dumps({each.metadata['Name']: each.version for each in importlib.metadata.distributions()}))"
)


class Interpreter(NamedTuple):
    """A Python that environments are made with. `version` is its full version."""

    path: Path
    version: str
    platform: str

    @property
    def minor(self) -> str:
        """Returns the version that locks are made for, such as 3.11."""
        return ".".join(self.version.split(".")[:2])


class Installation:
    """The installation of one engine: what it is made from and where its log is. `say` is told each step.

    `show(done, of)` is called while packages are fetched and installed.
    """

    def __init__(
        self,
        name: EngineName,
        device: Device,
        interpreter: Interpreter,
        say: Callable[[str], None],
        show: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self.name, self.device, self.interpreter = name, device, interpreter
        self.build: EngineBuild = ENGINES[name][device]
        self.lock: Lock = locks.read_lock(name, device, interpreter.platform, interpreter.minor)
        self.root = choose_engines_folder()
        self.folder, self.unfinished = self.root / name, self.root / f"{name}{UNFINISHED}"
        self.log = self.root / f"{name}.log"
        self.say, self.show = say, show


def choose_device(name: EngineName, asked: str) -> Device:
    """Returns the device that an engine is installed for: with `auto` NVIDIA's where its driver is loaded.

    Raises RecipeError where the engine has no build for it.
    """
    builds = ENGINES[name]
    if asked == "auto":
        return "cuda" if _HOST_GPU.exists() and "cuda" in builds else "cpu"
    for device in builds:
        if asked == device:
            return device
    raise RecipeError(f"engine {name}: there is none for {asked}; there is one for {', '.join(builds)}")


def examine_interpreter(path: Path) -> Interpreter:
    """Asks a Python for its version and platform. Raises RecipeError where it is none."""
    command = [str(path), "-I", "-c", _ASK_INTERPRETER]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        implementation, version, platform = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RecipeError(f"--python {path}: no Python that runs: {error}") from None
    if implementation != "cpython":
        raise RecipeError(f"--python {path}: {implementation}; the engines' packages are built for CPython")
    return Interpreter(path, version, platform)


def install_engine(installation: Installation) -> None:
    """Installs an engine, unless its environment is that of the lock already; an older one is replaced at the end.

    Raises StageError where it fails or another process installs it; then all is as it was before.
    """
    installation.root.mkdir(parents=True, exist_ok=True)
    with _hold_engine(installation.name, installation.say):
        record = read_record(installation.folder)
        is_same = record is not None and record.lock_sha256 == installation.lock.sha256
        if is_same and examine_engine(installation.name).state == "installed":
            installation.say(f"{installation.name}: installed already, of this lock: {installation.folder}")
            return
        remove_tree(installation.unfinished)
        _check_room(installation)
        try:
            _make_environment(installation)
            _put_in_place(installation)
        finally:
            remove_tree(installation.unfinished)


def remove_engine(name: EngineName, say: Callable[[str], None]) -> bool:
    """Deletes an engine's environment and log. Returns whether there was one.

    Raises StageError while another process installs or removes it.
    """
    root = choose_engines_folder()
    if not root.exists():
        return False
    with _hold_engine(name, say):
        (root / f"{name}.log").unlink(missing_ok=True)
        for leftover in (UNFINISHED, _REPLACED):  # of an installation that was killed
            remove_tree(root / f"{name}{leftover}")
        if not (root / name).exists():
            return False
        (root / name / RECORD).unlink(missing_ok=True)  # first: a kill here leaves no half engine that seems whole
        remove_tree(root / name)
        return True


@contextmanager
def _hold_engine(name: EngineName, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the right to change an engine's environment inside the `with` block."""
    folder = choose_engines_folder() / f".{name}.lease"
    try:
        with hold_lease(folder, say=say):
            yield
    except LeaseHeld as error:
        raise StageError(f"engine {name}: {error} is installing or removing it; wait for it") from None


def _check_room(installation: Installation) -> None:
    """Raises StageError where the disk has too little room."""
    free_gib, need_gib = shutil.disk_usage(installation.root).free / 2**30, installation.build.disk_gib
    if free_gib < need_gib:
        raise StageError(
            f"engine {installation.name}: {need_gib:g} GiB are needed in {installation.root}, and {free_gib:.1f} GiB "
            "are free; name another folder with QWEN_ALIGN_ENGINES"
        )
    build, packages = installation.build, installation.lock.packages
    installation.say(
        f"{installation.name}: {build.package} {build.version} for {installation.device}"
        + ("" if build.is_tested else " (untested on hardware)")
        + f", {len(packages)} packages for Python {installation.interpreter.version} into {installation.folder}: "
        f"{need_gib:g} GiB at most, {free_gib:.0f} GiB free; log: {installation.log}"
    )


def _make_environment(installation: Installation) -> None:
    """Makes an engine's environment aside, up to its record. Raises StageError where a step fails."""
    build, python = installation.build, get_python(installation.unfinished)
    with installation.log.open("w", encoding="utf-8"):
        pass
    (installation.unfinished / _TEMPORARY).mkdir(parents=True)
    _run(installation, [str(installation.interpreter.path), "-P", "-m", "venv", str(installation.unfinished)])
    fetched = [package for package in installation.lock.packages if package.name not in build.compiled]
    compiled = [package for package in installation.lock.packages if package.name in build.compiled]
    installation.say("fetching and installing the packages of the lock")
    _install_packages(installation, fetched, "--only-binary", ":all:")
    if compiled:
        installation.say(f"compiling {', '.join(build.compiled)}: minutes")
        # pip's cache knows nothing of the compiler's settings; a package built without them may lie there.
        options = ["--no-cache-dir", "--no-build-isolation", *_no_binary(build.compiled)]
        _install_packages(installation, compiled, *options, settings=build.compiler_settings)
    installation.say("checking that it works")
    _check_versions(installation, python)
    _run(installation, [str(python), "-P", "-c", build.check])
    record = EngineRecord(
        name=installation.name,
        device=installation.device,
        platform=installation.interpreter.platform,
        python=installation.interpreter.version,
        versions={package.name: package.version for package in installation.lock.packages},
        lock=installation.lock.path.name,
        lock_sha256=installation.lock.sha256,
        installed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        qwen_align=qwen_align.__version__,
    )
    _name_final_folder(installation)
    remove_tree(installation.unfinished / _TEMPORARY)
    write_json(installation.unfinished / RECORD, record._asdict())


def _no_binary(packages: Sequence[str]) -> list[str]:
    return ["--no-binary", ",".join(packages)]


def _install_packages(
    installation: Installation,
    packages: Sequence[LockedPackage],
    *options: str,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Has pip install the packages of a lock, each of a file whose hash stands there, and nothing besides."""
    requirements = installation.unfinished / "requirements.txt"
    requirements.write_text("".join(f"{package.line}\n" for package in packages), encoding="utf-8")
    command = [str(get_python(installation.unfinished)), "-P", "-m", "pip", "install", "--require-hashes", "--no-deps"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", *options]
    _run(installation, [*command, "--requirement", str(requirements)], settings or {}, n_packages=len(packages))


def _run(
    installation: Installation, command: Sequence[str], settings: Mapping[str, str] | None = None, n_packages: int = 0
) -> None:
    """Runs a program of the installation with its output in the log. Raises StageError where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != PARENT_VARIABLE}
    scripts = str(get_python(installation.unfinished).parent)  # where cmake and ninja are
    environment |= {"PATH": os.pathsep.join([scripts, environment.get("PATH", os.defpath)]), **(settings or {})}
    environment["TMPDIR"] = str(installation.unfinished / _TEMPORARY)
    begin = installation.log.stat().st_size
    with installation.log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _END_TOGETHER, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if n_packages:
                    installation.show(_count_done(installation, begin), 2 * n_packages)
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # compilers run in groups of their own, which ninja ends
                try:
                    process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    if process.returncode:
        raise StageError(_word_failure(installation, _read_log(installation, begin)))


def _read_log(installation: Installation, begin: int) -> str:
    """Returns what the log holds behind a position."""
    with installation.log.open("rb") as file:
        file.seek(begin)
        return file.read().decode("utf-8", errors="replace")


def _count_done(installation: Installation, begin: int) -> int:
    """Returns how many packages pip has fetched, plus how many are installed."""
    said = _read_log(installation, begin)
    n_fetched = sum(line.startswith(("Collecting ", "Processing ")) for line in said.splitlines())
    n_installed = sum(1 for _ in installation.unfinished.glob("lib/python*/site-packages/*.dist-info/RECORD"))
    return n_fetched + (n_installed if "Installing collected packages" in said else 0)


def _word_failure(installation: Installation, said: str) -> str:
    """Returns what is told of a step that failed, from what it wrote into the log."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")] or lines[-1:] or ["it ended without a message"]
    where = f"engine {installation.name}: not installed"
    if "DO NOT MATCH THE HASHES" in said:
        package = next((line for line in lines if line.endswith(":") and "==" in line), "a package:")
        return (
            f"{where}: {package.rstrip(':')}: the index offers another file than the lock has a hash of; it was not "
            f"installed. The index was changed or tampered with; log: {installation.log}"
        )
    cpu_torch = next((each.version for each in installation.lock.packages if each.name == "torch"), "")
    if "+cpu" in cpu_torch and "No matching distribution found for torch==" in said:
        return (
            f"{where}: pip's indexes do not offer torch {cpu_torch}: builds for CPUs are on PyTorch's own index. Name "
            f"it in PIP_EXTRA_INDEX_URL, or a folder with the wheel in PIP_FIND_LINKS; log: {installation.log}"
        )
    return f"{where}: {errors[-1].removeprefix('ERROR: ')}; log: {installation.log}"


def _check_versions(installation: Installation, python: Path) -> None:
    """Raises StageError where an environment does not hold the very versions of its lock."""
    done = subprocess.run([str(python), "-I", "-c", _LIST_INSTALLED], capture_output=True, text=True, check=True)
    installed = {canonicalize_name(name): version for name, version in json.loads(done.stdout).items()}
    wanted = {canonicalize_name(package.name): package.version for package in installation.lock.packages}
    others = {name: installed.get(name) for name, version in wanted.items() if installed.get(name) != version}
    if others:
        name, version = next(iter(others.items()))
        raise StageError(
            f"engine {installation.name}: not installed: {name} is {version or 'missing'}, and the lock has "
            f"{wanted[name]}; log: {installation.log}"
        )


def _name_final_folder(installation: Installation) -> None:
    """Writes the final folder's path into an environment's scripts, which name their interpreter by its path."""
    before, after = os.fsencode(installation.unfinished), os.fsencode(installation.folder)
    for path in get_python(installation.unfinished).parent.iterdir():
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if before in content and b"\0" not in content:
            path.write_bytes(content.replace(before, after))


def _put_in_place(installation: Installation) -> None:
    """Renames a finished environment into its place, and deletes the one that was there before."""
    replaced = installation.root / f"{installation.name}{_REPLACED}"
    remove_tree(replaced)
    if installation.folder.exists():
        installation.folder.rename(replaced)
    installation.unfinished.rename(installation.folder)
    remove_tree(replaced)
    installation.say(f"{installation.name}: {examine_engine(installation.name).found}")

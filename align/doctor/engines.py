"""Says which engines are installed in environments of their own."""

from collections.abc import Iterator

from qwen_align.align.doctor.finding import Finding
from qwen_align.align.engines.environments import list_engines


def check_engines() -> Iterator[Finding]:
    """Yields a finding for each engine. One that is not installed is well; one that cannot be used as it is a note."""
    for engine in list_engines():
        is_useless = engine.state not in ("installed", "not installed")
        found = f"{engine.name}: {engine.state}: {engine.found}"
        if engine.state == "not installed" and engine.advice:
            found += f" ({engine.advice})"
        yield Finding("engine", found, engine.advice if is_useless else "")

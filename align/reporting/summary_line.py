"""Formats a stage's summary as one line, for the terminal and `check`."""

from collections.abc import Mapping


def format_summary(summary: Mapping[str, object]) -> str:
    """Formats a stage's summary as one line of counts, shares and drops by reason."""
    parts = []
    for name, value in summary.items():
        if isinstance(value, bool) or not value:
            continue
        if isinstance(value, int):
            parts.append(f"{name} {value:,}")
        elif isinstance(value, float):
            parts.append(f"{name} {value:.3g}")
        elif name == "dropped" and isinstance(value, dict):
            parts.append("dropped " + ", ".join(f"{count:,} {reason}" for reason, count in value.items()))
    return ", ".join(parts)

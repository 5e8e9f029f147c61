"""A stage's summary in one line, as the terminal and `check` show it."""

from collections.abc import Mapping


def format_summary(summary: Mapping[str, object]) -> str:
    """Returns a stage's summary in one line: counts and shares, and drops by reason."""
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

"""Formats a stage's summary as one line, for the terminal and `check`."""

from collections.abc import Mapping
from typing import Any


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


def list_left_out_columns(summary: Mapping[str, Any]) -> dict[str, int]:
    """Returns how many rows each column of a data stage's source was left out of, by column."""
    return dict((summary.get("conversion") or {}).get("columns_left_out") or {})

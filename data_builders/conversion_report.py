"""Reports a data source's format, the number of rows made of it, and the columns that were not read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """The format of a data source with the counts of its conversion. It is complete when the rows have been read."""

    source: str = ""
    format: str = ""
    is_recognised: bool = False
    n_made: Counter[str] = field(default_factory=Counter)
    n_converted: Counter[str] = field(default_factory=Counter)
    n_left_out: Counter[str] = field(default_factory=Counter)
    met_keys: set[str] = field(default_factory=set)

    def format_lines(self) -> list[str]:
        """Formats the conversion report as text lines, one statement per line."""
        verb = "recognised as" if self.is_recognised else "read as"
        lines = [f"{self.source}: {verb} {self.format}"]
        lines += [f"{count:,} {kind} rows made" for kind, count in self.n_made.items()]
        lines += [f"{conversion}: {count:,}" for conversion, count in sorted(self.n_converted.items())]
        return lines + format_left_out_columns(self.n_left_out)

    def to_manifest(self) -> dict[str, Any]:
        """Returns the counts of the conversion report as a dict for the manifest of the data folder."""
        return {
            "format": self.format,
            "recognised": self.is_recognised,
            "made": dict(self.n_made),
            "converted": dict(sorted(self.n_converted.items())),
            "columns_left_out": dict(sorted(self.n_left_out.items())),
        }


def format_left_out_columns(counts: Mapping[str, int]) -> list[str]:
    """Formats how many rows each column was left out of, one line per column."""
    return [f"column '{key}' left out of {count:,} rows" for key, count in sorted(counts.items())]


class ReadValues(dict[str, Any]):
    """A mapping that wraps a source row and records which of its keys are read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

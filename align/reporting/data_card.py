"""Writes the data card of a data stage: a README in Hugging Face form with sources, licences, counts and drops."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from qwen_align.align.references import to_plain_value
from qwen_align.align.reporting.markdown import format_markdown_table
from qwen_align.align.rows import Row, Steps, Text
from qwen_align.align.settings.build_data import BuildData

NOT_STATED = "not stated"
# https://huggingface.co/docs/hub/datasets-cards: the names of size_categories.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


class RowTally:
    """A tally of rows by kind, source and mode, and their digest, updated as rows are written."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self._sha = hashlib.sha256()

    def add_row(self, row: Row, line: str) -> None:
        """Adds a row to the counts and the digest. `line` is the row as it stands in the file, with its newline."""
        self.kinds[row.row] += 1
        self.sources[row.source] += 1
        self.modes["none" if isinstance(row, Text | Steps) else row.mode or "none"] += 1
        self._sha.update(line.encode())

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()


def format_data_card(
    settings: BuildData, seed: int, tally: RowTally, dropped: Mapping[str, int], left_out: Mapping[str, int]
) -> str:
    """Renders the data card (README) of a built data set as text.

    It has no names of files and stages: they are no part of what was made.
    """
    rows = tally.kinds.total()
    licences = sorted({settings.licences.get(source, NOT_STATED) for source in tally.sources})
    front = {
        "license": licences[0] if len(licences) == 1 and licences[0] != NOT_STATED else "other",
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>1M")],
        "tags": ["qwen-align", settings.builder.kind],
        "configs": [{"config_name": "default", "data_files": "rows.jsonl"}],
    }
    made = {
        "builder": _to_plain_settings(settings.builder),
        "sieve": _to_plain_settings(settings.sieve),
        "limit": settings.limit,
        "seed": seed,
    }
    left_out_rows: list[tuple[str, ...]] = [(name, f"{n:,}") for name, n in sorted(left_out.items())]
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# {settings.builder.kind}: {rows:,} rows\n",
            f"Made by qwen-align. sha256 of `rows.jsonl`: `{tally.sha256}`. What was left out is in `dropped.jsonl`.\n",
            _format_table(("source", "licence", "rows"), _list_sources(settings, tally)),
            _format_table(("kind of row", "rows"), [(name, f"{n:,}") for name, n in sorted(tally.kinds.items())]),
            _format_table(("mode", "rows"), [(name, f"{n:,}") for name, n in sorted(tally.modes.items())]),
            _format_table(("dropped because", "rows"), [(name, f"{n:,}") for name, n in dropped.items()]),
            *([_format_table(("column left out", "rows"), left_out_rows)] if left_out_rows else []),
            f"## How it was made\n\n```yaml\n{yaml.safe_dump(made, sort_keys=False, allow_unicode=True)}```\n",
        ]
    )


def _list_sources(settings: BuildData, tally: RowTally) -> list[tuple[str, ...]]:
    """Returns (source, licence, row count) of each source of a data set, sorted by row count in falling order."""
    return [
        (source or NOT_STATED, settings.licences.get(source, NOT_STATED), f"{count:,}")
        for source, count in sorted(tally.sources.items(), key=lambda item: (-item[1], item[0]))
    ]


def _format_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Formats a Markdown table, or a sentence if there are no rows."""
    if not rows:
        return f"No {headings[0]}.\n" if headings[0] != "dropped because" else "Nothing was dropped.\n"
    return format_markdown_table(headings, rows) + "\n"


def _to_plain_settings(settings: BaseModel) -> Any:
    """Converts a settings object to plain values, without the names of stages and files."""
    return to_plain_value(settings, ref=lambda ref: f"(a stage's {ref.product})", file=lambda path: "(a file)")

"""The data card of a data stage: a README in Hugging Face form, with sources, licences, counts and drops."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from qwen_align.align.references import to_plain_value
from qwen_align.align.rows import Row, Steps, Text
from qwen_align.align.settings.build_data import BuildData

NOT_STATED = "not stated"
# https://huggingface.co/docs/hub/datasets-cards: the names of size_categories.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


class Tally:
    """What a card says of rows, gathered as they are written."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self._sha = hashlib.sha256()

    def add(self, row: Row, line: str) -> None:
        """`line` is the row as it stands in the file, with its newline."""
        self.kinds[row.row] += 1
        self.sources[row.source] += 1
        self.modes["none" if isinstance(row, Text | Steps) else row.mode or "none"] += 1
        self._sha.update(line.encode())

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()


def card(spec: BuildData, seed: int, tally: Tally, dropped: Mapping[str, int]) -> str:
    """The README beside `rows.jsonl`. Names of files and stages are left out: they are no part of what was made."""
    rows = tally.kinds.total()
    licences = sorted({spec.licences.get(source, NOT_STATED) for source in tally.sources})
    front = {
        "license": licences[0] if len(licences) == 1 and licences[0] != NOT_STATED else "other",
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>1M")],
        "tags": ["qwen-align", spec.builder.kind],
        "configs": [{"config_name": "default", "data_files": "rows.jsonl"}],
    }
    made = {"builder": _plain(spec.builder), "sieve": _plain(spec.sieve), "limit": spec.limit, "seed": seed}
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# {spec.builder.kind}: {rows:,} rows\n",
            f"Made by qwen-align. sha256 of `rows.jsonl`: `{tally.sha256}`. What was left out is in `dropped.jsonl`.\n",
            _table(("source", "licence", "rows"), _by_source(spec, tally)),
            _table(("kind of row", "rows"), [(name, f"{n:,}") for name, n in sorted(tally.kinds.items())]),
            _table(("mode", "rows"), [(name, f"{n:,}") for name, n in sorted(tally.modes.items())]),
            _table(("dropped because", "rows"), [(name, f"{n:,}") for name, n in dropped.items()]),
            f"## How it was made\n\n```yaml\n{yaml.safe_dump(made, sort_keys=False, allow_unicode=True)}```\n",
        ]
    )


def _by_source(spec: BuildData, tally: Tally) -> list[tuple[str, ...]]:
    return [
        (source or NOT_STATED, spec.licences.get(source, NOT_STATED), f"{count:,}")
        for source, count in sorted(tally.sources.items(), key=lambda one: (-one[1], one[0]))
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return f"No {head[0]}.\n" if head[0] != "dropped because" else "Nothing was dropped.\n"
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _plain(settings: BaseModel) -> Any:
    return to_plain_value(settings, ref=lambda ref: f"(a stage's {ref.product})", file=lambda path: "(a file)")

"""build_data: a builder's rows through the sieve into `rows.jsonl`, every drop counted and listed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.errors import AlignError, DataError
from qwen_align.align.reporting.data_card import RowTally, format_data_card
from qwen_align.align.rows import Row, read_rows, to_line
from qwen_align.align.settings.base import did_you_mean
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.store.files import write_text
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.row_conversion import Conversion
from qwen_align.data_builders.sieve import Drops, Sources, sieve


def run(spec: BuildData, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    drops, tally, report = Drops(), RowTally(), Report()
    kept = 0
    unfinished = out / ".rows.jsonl"
    with unfinished.open("w", encoding="utf-8") as file:
        for row in rows(spec, _readers(inputs), context.seed, drops, report):
            line = to_line(row) + "\n"
            file.write(line)
            tally.add_row(row, line)
            kept += 1
            context.progress(kept, spec.limit or 0, unit="rows")
            context.stop_if_asked()
    if kept == 0 and spec.on_empty == "fail":
        unfinished.unlink()
        raise DataError(
            f"no row is left; dropped: {drops.counts or 'none, the builder made no row'}. See builder and sieve"
        )
    with (out / "dropped.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(drop._asdict(), ensure_ascii=False, sort_keys=True) + "\n" for drop in drops.rows)
    write_text(out / "README.md", format_data_card(spec, context.seed, tally, drops.counts))
    unfinished.replace(out / "rows.jsonl")
    return {"rows": kept, "dropped": drops.counts, **({"conversion": report.to_manifest()} if report.format else {})}


def rows(spec: BuildData, sources: Sources, seed: int, drops: Drops, report: Report | None = None) -> Iterator[Row]:
    """The kept rows; `check` walks them without a folder to write to. `report` is filled by what converts files.

    Raises DataError for rows and settings that the builder or the sieve cannot use, and at the end for a licence of a
    source that no row came from, unless `limit` left rows unread.
    """
    try:
        yield from _rows(spec, sources, seed, drops, report)
    except AlignError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from error


def _rows(spec: BuildData, sources: Sources, seed: int, drops: Drops, report: Report | None) -> Iterator[Row]:
    if isinstance(spec.builder, Conversion):
        made = spec.builder.build_with_report(report or Report(), drops)
    else:
        made = spec.builder.build(sources, seed, drops)
    met: set[str] = set()
    built = sieve(_noting_sources(made, met), spec.sieve, drops, sources)
    for number, row in enumerate(built, start=1):
        yield row
        if number == spec.limit:
            return
    for source in spec.licences:
        if source not in met and met:
            raise DataError(f"licences: no row is of source '{source}'{did_you_mean(source, filter(None, met))}")


def _noting_sources(made: Iterable[Row], met: set[str]) -> Iterator[Row]:
    for row in made:
        met.add(row.source)
        yield row


def _readers(inputs: Mapping[str, Path]) -> Sources:
    return {ref: partial(read_rows, folder / "rows.jsonl") for ref, folder in inputs.items()}

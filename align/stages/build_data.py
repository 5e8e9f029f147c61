"""Runs a build_data stage: builds rows, filters them by the sieve and writes `rows.jsonl`.

Every drop is counted and listed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.errors import AlignError, DataError
from qwen_align.align.reporting.data_card import RowTally, format_data_card
from qwen_align.align.rows import Row, read_rows, to_json_line
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.store.files import write_text
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.judged_answer_files import JudgedFile
from qwen_align.data_builders.row_conversion import Conversion
from qwen_align.data_builders.sieve import Drops, Sources, sieve


def run(settings: BuildData, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Builds the rows and the data card of a data stage and returns its summary.

    Raises DataError when no row is left.
    """
    drops, tally, report = Drops(), RowTally(), Report()
    kept = 0
    unfinished = out / ".rows.jsonl"
    with unfinished.open("w", encoding="utf-8") as file:
        for row in build_rows(settings, _open_row_readers(inputs), context.seed, drops, report):
            line = to_json_line(row) + "\n"
            file.write(line)
            tally.add_row(row, line)
            kept += 1
            context.report_progress(kept, settings.limit or 0, unit="rows")
            context.stop_if_requested()
    if kept == 0 and settings.on_empty == "fail":
        unfinished.unlink()
        raise DataError(
            f"no row is left; dropped: {drops.counts or 'none, the builder made no row'}. See builder and sieve"
        )
    with (out / "dropped.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(drop._asdict(), ensure_ascii=False, sort_keys=True) + "\n" for drop in drops.rows)
    write_text(out / "README.md", format_data_card(settings, context.seed, tally, drops.counts, report.n_left_out))
    unfinished.replace(out / "rows.jsonl")
    return {"rows": kept, "dropped": drops.counts, **({"conversion": report.to_manifest()} if report.format else {})}


def build_rows(
    settings: BuildData, sources: Sources, seed: int, drops: Drops, report: Report | None = None
) -> Iterator[Row]:
    """Yields the built rows that the sieve keeps.

    `check` walks them without writing. File conversions fill `report`.

    Raises DataError for rows and settings that the builder or the sieve cannot use, and at the end for a licence of a
    source that no row came from, unless `limit` left rows unread.
    """
    try:
        yield from _build_sieved_rows(settings, sources, seed, drops, report)
    except AlignError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from error


def _build_sieved_rows(
    settings: BuildData, sources: Sources, seed: int, drops: Drops, report: Report | None
) -> Iterator[Row]:
    """Yields the built rows that the sieve keeps. Errors are the builder's and the sieve's own."""
    if isinstance(settings.builder, Conversion | JudgedFile):
        built = settings.builder.build_with_report(report or Report(), drops)
    else:
        built = settings.builder.build(sources, seed, drops)
    seen_sources: set[str] = set()
    kept = sieve(_record_sources(built, seen_sources), settings.sieve, drops, sources)
    for number, row in enumerate(kept, start=1):
        yield row
        if number == settings.limit:
            return
    for source in settings.licences:
        if source not in seen_sources and seen_sources:
            suggestion = format_suggestion(source, filter(None, seen_sources))
            raise DataError(f"licences: no row is of source '{source}'{suggestion}")


def _record_sources(rows: Iterable[Row], seen_sources: set[str]) -> Iterator[Row]:
    """Yields the rows unchanged and adds their sources to the set `seen_sources`."""
    for row in rows:
        seen_sources.add(row.source)
        yield row


def _open_row_readers(inputs: Mapping[str, Path]) -> Sources:
    """Returns a function for each input reference that reads the rows of the input."""
    return {ref: partial(read_rows, folder / "rows.jsonl") for ref, folder in inputs.items()}

"""Renders a training set once into a memory-mapped file of the stage's folder, which all its processes read.

Rendering holds a few rows at a time, training those of a batch: a training set may be larger than memory. A resumed
stage reads the file that it finds whole; one that was left in the middle is rendered anew. The folder is among those
that a finished stage does not keep.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy
import pyarrow  # type: ignore[import-untyped]  # datasets needs it

from qwen_align.align.context import Context
from qwen_align.align.rendering.samples import PairIds, Sample
from qwen_align.align.rendering.training_set import RenderingStream
from qwen_align.align.store.files import read_json, remove_tree, write_json
from qwen_align.align.training.distributed import get_world_size

FOLDER = "rendered"
ROWS, COUNTS = "rows.arrow", "counts.json"  # the second says that the first is complete
N_TOKENS, TOKEN = "n_tokens", numpy.int32
WRITTEN_TOGETHER = 2**20  # token ids and labels: 4 MiB of them are held before they are written

Rendered = TypeVar("Rendered", bound=Sample | PairIds)


class StoredRows(NamedTuple):
    """A training set in a memory-mapped file: rows as TRL reads them, the tokens of each, and what was counted."""

    dataset: datasets.Dataset
    n_tokens: Any  # numpy int64 (rows,)
    counts: dict[str, Any]

    @property
    def n_rows(self) -> int:
        return len(self.n_tokens)

    @property
    def longest(self) -> int:
        """Returns the number of tokens of the longest sample, or completion with its prompt."""
        return int(self.counts["longest"])

    @property
    def dropped(self) -> dict[str, int]:
        """Returns the number of dropped rows by reason."""
        return dict(self.counts["dropped"])

    def count_tokens(self, rows: Sequence[int]) -> int:
        """Counts the tokens of the rows of the given numbers."""
        return int(self.n_tokens[rows].sum())


def render_once(
    out: Path,
    context: Context,
    stream: RenderingStream[Rendered],
    build_columns: Callable[[Rendered], Mapping[str, Any]],
) -> StoredRows:
    """Renders a training set in the main process, waits for it in the others, and returns it memory-mapped.

    `build_columns` makes a row's columns of what is rendered: lists of token ids, and numbers.
    """
    folder = out / FOLDER
    if context.is_main and not _is_complete(folder):
        _write_rows(folder, context, stream, build_columns)
        if get_world_size() > 1:  # those that wait have stopped
            context.stop_if_requested()
    while not _is_complete(folder):
        context.stop_if_requested()
        time.sleep(0.1)
    counts = read_json(folder / COUNTS)
    if not counts["rows"]:
        return StoredRows(datasets.Dataset.from_dict({}), numpy.zeros(0, numpy.int64), counts)
    stored = datasets.Dataset.from_file(str(folder / ROWS))
    return StoredRows(stored.remove_columns(N_TOKENS), stored.data.column(N_TOKENS).to_numpy(), counts)


def _is_complete(folder: Path) -> bool:
    """Returns whether a folder holds a whole training set."""
    try:
        return bool(read_json(folder / COUNTS)["bytes"] == (folder / ROWS).stat().st_size)
    except FileNotFoundError:
        return False


def _write_rows(
    folder: Path,
    context: Context,
    stream: RenderingStream[Rendered],
    build_columns: Callable[[Rendered], Mapping[str, Any]],
) -> None:
    """Writes all rows of a stream to a file in Arrow's stream format, and then what was counted."""
    remove_tree(folder)
    folder.mkdir()
    waiting: list[dict[str, Any]] = []
    n_rows = n_waiting = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((folder / ROWS).open("wb"))
        writer: Any = None
        schema: Any = None
        for rendered in stream:
            row = {**build_columns(rendered), N_TOKENS: rendered.n_tokens}
            row = {name: numpy.array(value, TOKEN) if isinstance(value, list) else value for name, value in row.items()}
            if schema is None:
                schema = _build_schema(row)
                writer = stack.enter_context(pyarrow.ipc.new_stream(file, schema))
            waiting.append(row)
            n_rows += 1
            n_waiting += sum(numpy.size(value) for value in row.values())
            if n_waiting >= WRITTEN_TOGETHER:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(waiting, schema))
                waiting, n_waiting = [], 0
                context.stop_if_requested()
        if waiting:
            writer.write_batch(pyarrow.RecordBatch.from_pylist(waiting, schema))
    write_json(folder / COUNTS, {"rows": n_rows, "bytes": (folder / ROWS).stat().st_size, **stream.describe()})


def _build_schema(row: Mapping[str, Any]) -> pyarrow.Schema:
    """Builds the schema of rows such as the given one: lists of token ids, counts and numbers."""
    types = {numpy.ndarray: pyarrow.list_(pyarrow.int32()), int: pyarrow.int64(), float: pyarrow.float64()}
    return pyarrow.schema([(name, types[type(value)]) for name, value in row.items()])

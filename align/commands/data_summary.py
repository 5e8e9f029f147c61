"""Summarises a data stage: row counts by kind, drops by reason, and a histogram of row lengths."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.samples import compute_length_percentiles
from qwen_align.align.rows import Chat, Completion, Labelled, Pair, Problem, Row, Steps

BINS = 10
_WIDTH = 40  # characters of the longest bar


def summarize_rows(rows: Sequence[Row], dropped: Mapping[str, int], renderer: Renderer) -> Iterator[str]:
    """Yields summary lines about the row counts, drops and token lengths of a data set.

    Lengths are in tokens of the renderer's template.
    """
    kinds = Counter(row.row for row in rows)
    yield f"{len(rows):,} rows: {', '.join(f'{n:,} {kind}' for kind, n in kinds.most_common()) or 'none'}"
    if dropped:
        drops = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
        yield f"{sum(dropped.values()):,} dropped: {drops}"
    lengths, note_counts = [], Counter[str]()
    for row in rows:
        renderable = to_renderable_row(row, renderer)
        if renderable.row is not None:
            lengths.append(renderable.n_tokens)
        if renderable.note:
            note_counts["cannot be rendered" if renderable.row is None else "say no mode; shown as no_think"] += 1
    yield from (f"{n:,} of them {what}" for what, n in note_counts.items())
    if lengths:
        percentiles = compute_length_percentiles(lengths)
        yield f"tokens a row: {', '.join(f'p{percent} {tokens}' for percent, tokens in percentiles.items())}"
        yield from draw_histogram(lengths)


class RenderableRow(NamedTuple):
    """A data row in a form that can be rendered, with its token length.

    The row is None if it cannot be rendered; `note` says what was changed, or why.
    """

    row: Row | None
    n_tokens: int
    note: str = ""


def to_renderable_row(row: Row, renderer: Renderer) -> RenderableRow:
    """Converts a data row to the form in which a training stage renders it.

    A row without a thinking mode is taken in mode no_think.

    A data stage's rows need not be what is trained: a later stage may set their mode.
    """
    try:
        return RenderableRow(row, count_tokens(row, renderer))
    except TemplateError as error:
        error_as_is = error
    no_think_row = _to_no_think(row)
    with suppress(TemplateError):
        if no_think_row is not None:
            return RenderableRow(
                no_think_row,
                count_tokens(no_think_row, renderer),
                f"shown with mode: no_think; as it is, {error_as_is}",
            )
    return RenderableRow(None, 0, f"cannot be rendered: {error_as_is}")


def _to_no_think(row: Row) -> Row | None:
    """Returns a data row set to thinking mode no_think. Returns None if it names a mode or flag, or holds thinking."""
    if not isinstance(row, Chat | Pair | Labelled) or row.mode is not None or row.flag is not None:
        return None
    sides = [row.chosen] if isinstance(row, Pair) else [row.completion] if isinstance(row, Labelled) else []
    has_thinking = any(turn.thinking for turn in (*row.messages, *sides))
    return None if has_thinking else row.model_copy(update={"mode": "no_think"})


def count_tokens(row: Row, renderer: Renderer) -> int:
    """Counts the tokens of a rendered data row with its prompt.

    Of a pair the longer side counts, of a conversation the longest sample.
    """
    if isinstance(row, Problem):
        return len(renderer.render_prompt(row.messages, mode=row.mode, flag=row.flag).ids)
    if isinstance(row, Completion):
        return len(renderer.render_prompt(row.prompt, mode=row.mode, flag=row.flag).ids) + row.n_tokens
    if isinstance(row, Pair):
        ids = renderer.render_pair(row)
        return len(ids.prompt) + max(len(ids.chosen), len(ids.rejected))
    if isinstance(row, Steps):
        return len(renderer.render_prompt(row.messages, mode=None, flag=None).ids) + sum(
            len(renderer.encode(step)) for step in row.steps
        )
    return max((len(sample.ids) for sample in renderer.render_samples(to_trainable_row(row))), default=0)


def to_trainable_row(row: Row) -> Row:
    """Converts a labelled completion to a conversation that ends with it. Other rows are returned unchanged."""
    if not isinstance(row, Labelled):
        return row
    turns = [*row.messages, row.completion]
    return Chat(id=row.id, messages=turns, mode=row.mode, flag=row.flag, source=row.source, meta=row.meta)


def draw_histogram(lengths: Sequence[int]) -> Iterator[str]:
    """Yields the lines of a text histogram of lengths, with up to BINS bars of equal bin width."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // BINS))
    counts = Counter((length - low) // width for length in lengths)
    max_count = max(counts.values())
    digits = len(f"{high:,}")
    for index in range((high - low) // width + 1):
        start = low + index * width
        bar = "█" * -(-counts[index] * _WIDTH // max_count)
        yield f"{start:>{digits},}-{min(start + width - 1, high):<{digits},} {bar} {counts[index]:,}"

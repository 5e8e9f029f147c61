"""A data stage at a glance: rows by kind, drops by reason, and how long the rows are, as a histogram."""

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


def overview(rows: Sequence[Row], dropped: Mapping[str, int], renderer: Renderer) -> Iterator[str]:
    """Lines to print above the rows; lengths are in tokens of the renderer's template."""
    kinds = Counter(row.row for row in rows)
    yield f"{len(rows):,} rows: {', '.join(f'{n:,} {kind}' for kind, n in kinds.most_common()) or 'none'}"
    if dropped:
        said = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
        yield f"{sum(dropped.values()):,} dropped: {said}"
    lengths, odd = [], Counter[str]()
    for row in rows:
        shown = as_shown(row, renderer)
        if shown.row is not None:
            lengths.append(shown.n_tokens)
        if shown.note:
            odd["cannot be rendered" if shown.row is None else "say no mode; shown as no_think"] += 1
    yield from (f"{n:,} of them {what}" for what, n in odd.items())
    if lengths:
        at = compute_length_percentiles(lengths)
        yield f"tokens a row: {', '.join(f'p{percent} {tokens}' for percent, tokens in at.items())}"
        yield from histogram(lengths)


class Shown(NamedTuple):
    """A row as it can be rendered, with its length; None if it cannot be. The note says what was done to it, or why."""

    row: Row | None
    n_tokens: int
    note: str = ""


def as_shown(row: Row, renderer: Renderer) -> Shown:
    """The row as a stage that reads the data is given it, or in mode no_think where it says none and never thinks.

    A data stage's rows need not be what is trained: a later stage may set their mode.
    """
    try:
        return Shown(row, n_tokens(row, renderer))
    except TemplateError as error:
        as_it_is = error
    other = _as_no_think(row)
    with suppress(TemplateError):
        if other is not None:
            return Shown(other, n_tokens(other, renderer), f"shown with mode: no_think; as it is, {as_it_is}")
    return Shown(None, 0, f"cannot be rendered: {as_it_is}")


def _as_no_think(row: Row) -> Row | None:
    if not isinstance(row, Chat | Pair | Labelled) or row.mode is not None or row.flag is not None:
        return None
    sides = [row.chosen] if isinstance(row, Pair) else [row.completion] if isinstance(row, Labelled) else []
    has_thinking = any(turn.thinking for turn in (*row.messages, *sides))
    return None if has_thinking else row.model_copy(update={"mode": "no_think"})


def n_tokens(row: Row, renderer: Renderer) -> int:
    """Tokens of the row with its prompt; of a pair's longer side, of a conversation's longest sample."""
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
    return max((len(sample.ids) for sample in renderer.render_samples(as_trained(row))), default=0)


def as_trained(row: Row) -> Row:
    """A labelled completion as the conversation it ends; other rows as they are."""
    if not isinstance(row, Labelled):
        return row
    turns = [*row.messages, row.completion]
    return Chat(id=row.id, messages=turns, mode=row.mode, flag=row.flag, source=row.source, meta=row.meta)


def histogram(lengths: Sequence[int]) -> Iterator[str]:
    """Up to BINS lines of equal width, the count of each as a bar."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // BINS))
    counts = Counter((length - low) // width for length in lengths)
    most = max(counts.values())
    digits = len(f"{high:,}")
    for place in range((high - low) // width + 1):
        start = low + place * width
        bar = "█" * -(-counts[place] * _WIDTH // most)
        yield f"{start:>{digits},}-{min(start + width - 1, high):<{digits},} {bar} {counts[place]:,}"

"""Summarises a data stage: row counts by kind, drops by reason, and a histogram of row lengths."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

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
    lengths = [length for row in rows if isinstance(length := measure_row(row, renderer), int)]
    if len(lengths) < len(rows):
        yield f"{len(rows) - len(lengths):,} of them cannot be rendered"
    if lengths:
        percentiles = compute_length_percentiles(lengths)
        yield f"tokens a row: {', '.join(f'p{percent} {tokens}' for percent, tokens in percentiles.items())}"
        yield from draw_histogram(lengths)


def measure_row(row: Row, renderer: Renderer) -> int | str:
    """Returns the number of tokens of a rendered data row, or why a training stage could not render it."""
    try:
        return count_tokens(row, renderer)
    except TemplateError as error:
        return str(error)


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

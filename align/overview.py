"""A data stage at a glance: rows by kind, drops by reason, and how long the rows are, as a histogram."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from qwen_align.align.render import Renderer
from qwen_align.align.rows import Chat, Completion, Labelled, Pair, Problem, Row, Steps
from qwen_align.align.samples import length_percentiles

BINS = 10
_WIDTH = 40  # characters of the longest bar


def overview(rows: Sequence[Row], dropped: Mapping[str, int], renderer: Renderer) -> Iterator[str]:
    """Lines to print above the rows; lengths are in tokens of the renderer's template."""
    kinds = Counter(row.row for row in rows)
    yield f"{len(rows):,} rows: {', '.join(f'{n:,} {kind}' for kind, n in kinds.most_common()) or 'none'}"
    if dropped:
        said = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
        yield f"{sum(dropped.values()):,} dropped: {said}"
    lengths = [n_tokens(row, renderer) for row in rows]
    if lengths:
        at = length_percentiles(lengths)
        yield f"tokens a row: {', '.join(f'p{percent} {tokens}' for percent, tokens in at.items())}"
        yield from histogram(lengths)


def n_tokens(row: Row, renderer: Renderer) -> int:
    """Tokens of the row with its prompt; of a pair's longer side, of a conversation's longest sample."""
    if isinstance(row, Problem):
        return len(renderer.prompt(row.messages, mode=row.mode, flag=row.flag).ids)
    if isinstance(row, Completion):
        return len(renderer.prompt(row.prompt, mode=row.mode, flag=row.flag).ids) + row.n_tokens
    if isinstance(row, Pair):
        ids = renderer.pair(row)
        return len(ids.prompt) + max(len(ids.chosen), len(ids.rejected))
    if isinstance(row, Steps):
        return len(renderer.prompt(row.messages, mode=None, flag=None).ids) + sum(
            len(renderer.encode(step)) for step in row.steps
        )
    return max((len(sample.ids) for sample in renderer.samples(as_trained(row))), default=0)


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

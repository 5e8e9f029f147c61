"""Renders a whole training set of rows or preference pairs to token ids. Over-long ones are dropped and counted."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from qwen_align.align.errors import DataError
from qwen_align.align.rendering.renderer import OnlyRejectedThinks, Renderer
from qwen_align.align.rendering.samples import PairIds, Sample, TurnCounts, merge_turns
from qwen_align.align.rows import Pair, Row


class RenderedRows(NamedTuple):
    """The rendered samples of a training set, its drops by reason and its token lengths.

    Lengths include those of dropped samples.

    Counts are of samples as rendered before turns are merged: a conversation has one an assistant turn. Turns that are
    seen and not trained are among the drops. `modes` counts how a hybrid model is asked for the mode of each, over-long
    ones included; it is empty for other models.
    """

    samples: list[Sample]
    dropped: dict[str, int]
    lengths: list[int]
    modes: dict[str, int]

    @property
    def longest(self) -> int:
        """Returns the number of tokens of the longest sample that is kept."""
        return max((len(sample.ids) for sample in self.samples), default=0)


class RenderedPairs(NamedTuple):
    """The rendered preference pairs of a training set, its drops by reason and its token lengths.

    A length is that of the pair's longer completion with the prompt, dropped pairs included.
    """

    pairs: list[PairIds]
    dropped: dict[str, int]
    lengths: list[int]

    @property
    def longest(self) -> int:
        """Returns the number of tokens of the longest completion that is kept, with its prompt."""
        return max(
            (len(pair.prompt) + len(side) for pair in self.pairs for side in (pair.chosen, pair.rejected)), default=0
        )


def render_rows(renderer: Renderer, rows: Iterable[Row], max_tokens: int) -> RenderedRows:
    """Renders all rows to training samples. Samples over `max_tokens` are dropped and counted, never cut."""
    samples: list[Sample] = []
    counts = TurnCounts()
    dropped = counts.untrained
    lengths = []
    for row in rows:
        kept = []
        for turn in renderer.render_turns(row, counts):
            lengths.append(len(turn.ids))
            reason = _explain_drop(len(turn.ids), turn.mask.index(True), max_tokens)
            if reason:
                dropped[reason] += 1
            else:
                kept.append(turn)
        samples.extend(merge_turns(kept))
    modes = {mode: count for mode, count in counts.trained.most_common() if mode}
    return RenderedRows(samples, dict(dropped), lengths, modes)


def render_pairs(
    renderer: Renderer, rows: Iterable[Pair], max_tokens: int, *, needs_margin: bool = False
) -> RenderedPairs:
    """Renders all preference pairs to token ids.

    Pairs with a completion over `max_tokens` with its prompt are dropped and counted, and so are those of which only
    the rejected side thinks, unless a flag asks for no thinking.

    Raises DataError for a pair without a margin where `needs_margin`.
    """
    pairs: list[PairIds] = []
    dropped: Counter[str] = Counter()
    lengths = []
    for row in rows:
        if needs_margin and row.margin is None:
            raise DataError(
                f"row '{row.id}': has no margin, which reward_model's margins: true subtracts; "
                "give every pair a margin, or leave margins out"
            )
        try:
            pair = renderer.render_pair(row)
        except OnlyRejectedThinks:
            dropped["pairs of which only the rejected side thinks"] += 1
            continue
        lengths.append(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))
        reason = _explain_drop(lengths[-1], len(pair.prompt), max_tokens)
        if reason:
            dropped[reason] += 1
        else:
            pairs.append(pair)
    return RenderedPairs(pairs, dict(dropped), lengths)


def _explain_drop(n_tokens: int, n_prompt: int, max_tokens: int) -> str | None:
    """Returns the reason why an over-long sample is dropped. Returns None for a sample within the token limit."""
    if n_tokens <= max_tokens:
        return None
    return f"prompt over {max_tokens} tokens" if n_prompt >= max_tokens else f"over {max_tokens} tokens"

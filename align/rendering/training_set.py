"""Renders a whole training set of rows or preference pairs to token ids. Over-long ones are dropped and counted."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from qwen_align.align.errors import DataError
from qwen_align.align.rendering.renderer import OnlyRejectedThinks, Renderer
from qwen_align.align.rendering.samples import PairIds, Sample, TurnCounts, merge_turns
from qwen_align.align.rows import Pair, Row

Rendered_co = TypeVar("Rendered_co", covariant=True)


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
        return max((pair.longest for pair in self.pairs), default=0)


def render_rows(renderer: Renderer, rows: Iterable[Row], max_tokens: int) -> RenderedRows:
    """Renders all rows to training samples. Samples over `max_tokens` are dropped and counted, never cut."""
    stream = SampleStream(renderer, rows, max_tokens)
    return RenderedRows(list(stream), dict(stream.dropped), list(stream.lengths), stream.modes)


def render_pairs(
    renderer: Renderer, rows: Iterable[Pair], max_tokens: int, *, needs_margin: bool = False
) -> RenderedPairs:
    """Renders all preference pairs to token ids, as `PairStream` does."""
    stream = PairStream(renderer, rows, max_tokens, needs_margin=needs_margin)
    return RenderedPairs(list(stream), dict(stream.dropped), list(stream.lengths))


class RenderingStream(Protocol[Rendered_co]):
    """A protocol of what renders a training set one row at a time and counts as it goes."""

    def __iter__(self) -> Iterator[Rendered_co]: ...

    def describe(self) -> dict[str, Any]:
        """Returns what was counted, once the stream has ended: `longest`, `dropped` and more."""
        ...


class SampleStream:
    """Renders rows to training samples one after another, and counts what becomes of them.

    Samples over `max_tokens` are dropped and counted, never cut. What is counted is complete when the stream has ended:
    see `RenderedRows`.
    """

    def __init__(self, renderer: Renderer, rows: Iterable[Row], max_tokens: int) -> None:
        self.renderer, self.rows, self.max_tokens = renderer, rows, max_tokens
        self.counts = TurnCounts()
        self.lengths = array("q")
        self.longest = self.n_supervised = 0

    def __iter__(self) -> Iterator[Sample]:
        for row in self.rows:
            kept = []
            for turn in self.renderer.render_turns(row, self.counts):
                self.lengths.append(len(turn.ids))
                reason = _explain_drop(len(turn.ids), turn.mask.index(True), self.max_tokens)
                if reason:
                    self.dropped[reason] += 1
                else:
                    kept.append(turn)
            for sample in merge_turns(kept):
                self.longest = max(self.longest, len(sample.ids))
                self.n_supervised += sum(sample.mask)
                yield sample

    @property
    def dropped(self) -> Counter[str]:
        return self.counts.untrained

    @property
    def modes(self) -> dict[str, int]:
        return {mode: count for mode, count in self.counts.trained.most_common() if mode}

    def describe(self) -> dict[str, Any]:
        """Returns what was counted."""
        return {
            "dropped": self.dropped,
            "modes": self.modes,
            "longest": self.longest,
            "supervised_tokens": self.n_supervised,
        }


class PairStream:
    """Renders preference pairs to token ids one after another, and counts what becomes of them.

    Pairs with a completion over `max_tokens` with its prompt are dropped and counted, and so are those of which only
    the rejected side thinks, unless a flag asks for no thinking.

    Raises DataError for a pair without a margin where `needs_margin`.
    """

    def __init__(
        self, renderer: Renderer, rows: Iterable[Pair], max_tokens: int, *, needs_margin: bool = False
    ) -> None:
        self.renderer, self.rows, self.max_tokens, self.needs_margin = renderer, rows, max_tokens, needs_margin
        self.dropped: Counter[str] = Counter()
        self.lengths = array("q")
        self.longest = 0

    def __iter__(self) -> Iterator[PairIds]:
        for row in self.rows:
            if self.needs_margin and row.margin is None:
                raise DataError(
                    f"row '{row.id}': has no margin, which reward_model's margins: true subtracts; "
                    "give every pair a margin, or leave margins out"
                )
            try:
                pair = self.renderer.render_pair(row)
            except OnlyRejectedThinks:
                self.dropped["pairs of which only the rejected side thinks"] += 1
                continue
            self.lengths.append(pair.longest)
            reason = _explain_drop(pair.longest, len(pair.prompt), self.max_tokens)
            if reason:
                self.dropped[reason] += 1
            else:
                self.longest = max(self.longest, pair.longest)
                yield pair

    def describe(self) -> dict[str, Any]:
        """Returns what was counted."""
        return {"dropped": self.dropped, "longest": self.longest}


def _explain_drop(n_tokens: int, n_prompt: int, max_tokens: int) -> str | None:
    """Returns the reason why an over-long sample is dropped. Returns None for a sample within the token limit."""
    if n_tokens <= max_tokens:
        return None
    return f"prompt over {max_tokens} tokens" if n_prompt >= max_tokens else f"over {max_tokens} tokens"

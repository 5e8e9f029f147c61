"""Defines training samples as token ids, merges turns, computes length percentiles and splits samples into text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenizers import Tokenizer


class Sample(NamedTuple):
    """A training sample: its token ids and, for each token, whether it is in the loss."""

    ids: list[int]
    mask: list[bool]

    @property
    def n_tokens(self) -> int:
        return len(self.ids)


@dataclass
class TurnCounts:
    """Counts of assistant turns: trained ones by how a hybrid model is asked for their mode, others by reason."""

    trained: Counter[str] = field(default_factory=Counter)
    untrained: Counter[str] = field(default_factory=Counter)


class PairIds(NamedTuple):
    """A preference pair as token ids of prompt, chosen and rejected.

    Both completions end with the end-of-turn token.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float | None = None

    @property
    def n_tokens(self) -> int:
        """Returns the number of tokens of the prompt, counted once, and of both completions."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Returns the number of tokens of the longer completion, with its prompt."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class Piece(NamedTuple):
    """A readable piece of a sample's text: one token, or the few tokens that share a character."""

    text: str
    is_trained: bool


def merge_turns(turns: Sequence[Sample]) -> list[Sample]:
    """Merges the samples of a conversation's turns where one merely continues the one before it.

    Every trained token keeps exactly the ids in front of it, so a conversation under a template that never
    rewrites its history costs its length once instead of once a turn.
    """
    merged: list[Sample] = []
    for turn in turns:
        if merged and turn.ids[: len(merged[-1].ids)] == merged[-1].ids:
            previous = merged.pop()
            n_shared = len(previous.ids)
            turn = Sample(turn.ids, [*previous.mask, *turn.mask[n_shared:]])
        merged.append(turn)
    return merged


def compute_length_percentiles(lengths: Sequence[int], percents: Sequence[int] = (50, 90, 99, 100)) -> dict[int, int]:
    """Computes nearest-rank percentiles of token lengths. The dict is empty if there are no lengths."""
    ordered = sorted(lengths)
    return {percent: ordered[max(0, -(-percent * len(ordered) // 100) - 1)] for percent in percents if ordered}


def format_length_percentiles(lengths: Sequence[int]) -> str:
    """Formats percentiles of token lengths as text."""
    percentiles = compute_length_percentiles(lengths)
    return "tokens: " + (", ".join(f"p{percent} {tokens}" for percent, tokens in percentiles.items()) or "none")


def split_into_pieces(tokenizer: Tokenizer, sample: Sample) -> Iterator[Piece]:
    """Splits a sample into readable text pieces with their loss mask.

    Special tokens are written out. The pieces joined are the sample's text.
    """
    pending: list[int] = []
    for index, (token, is_trained) in enumerate(zip(sample.ids, sample.mask, strict=True)):
        pending.append(token)
        text = tokenizer.decode(pending, skip_special_tokens=False)
        is_last = index + 1 == len(sample.ids) or sample.mask[index + 1] != is_trained
        # A replacement character at the end: the token stops inside a character whose bytes are not all there.
        if is_last or not text.endswith("\ufffd"):
            yield Piece(text, is_trained)
            pending = []

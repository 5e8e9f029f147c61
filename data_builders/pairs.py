"""Preference pairs from a model's own completions: a correct one over a wrong one for the same prompt."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Message, Pair, Row
from qwen_align.align.strict import Strict
from qwen_align.data_builders.completions import by_prompt, completions, verdict_value
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.settings import RewardName
from qwen_align.reward.thinking import Turn, split_turn


class Candidate(NamedTuple):
    """A completion that may be a side of a pair: its reward and its text in parts."""

    row: Completion
    value: float
    turn: Turn


class Match(NamedTuple):
    """Two sides and the number of characters they begin alike with."""

    chosen: Candidate
    rejected: Candidate
    prefix: int


class Pairs(Strict):
    """At most `per_prompt` pairs a prompt, those with the longest common beginning first.

    Sides that part late differ in what made one of them wrong; sides of like length leave DPO less to learn about
    length. Completions cut at the length limit, without a verdict or with a malformed thinking block are no sides.
    """

    kind: Literal["pairs"] = "pairs"
    from_data: DataRef
    reward: RewardName = Field(default="math_answer", description="whose verdict tells correct from wrong")
    correct_from: float = Field(default=1.0, description="reward of a correct completion; below is wrong")
    per_prompt: int = Field(default=2, ge=1)
    max_length_difference: int | None = Field(default=None, ge=0, description="tokens")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Pairs in the order of the prompts; a prompt that makes none is dropped with the reason."""
        for prompt_id, rows in by_prompt(completions(sources[self.from_data], self.from_data)).items():
            candidates = [one for row in rows if (one := self._candidate(row, drops)) is not None]
            correct = [one for one in candidates if one.value >= self.correct_from]
            wrong = [one for one in candidates if one.value < self.correct_from]
            if not correct or not wrong:
                of = f"of {len(candidates)} usable completions"
                drops.add("no correct completion" if not correct else "no wrong completion", prompt_id, of)
                continue
            matches = self._matches(correct, wrong)
            if not matches:
                drops.add("no pair of like length", prompt_id, f"of {len(correct)} correct and {len(wrong)} wrong")
            yield from (_pair(match, self.reward) for match in matches)

    def _candidate(self, row: Completion, drops: Drops) -> Candidate | None:
        value = verdict_value(row, self.reward)
        turn = split_turn(row.text)
        if value is None:
            drops.add("no verdict", row.id, row.verdicts[self.reward].reason)
        elif row.finish_reason == "length":
            drops.add("cut at the length limit", row.id)
        elif isinstance(turn, str):
            drops.add("malformed turn", row.id, turn)
        else:
            return Candidate(row, value, turn)
        return None

    def _matches(self, correct: Sequence[Candidate], wrong: Sequence[Candidate]) -> list[Match]:
        """The best matches, never two of the same texts."""
        matches: dict[tuple[str, str], Match] = {}
        for chosen, rejected in product(correct, wrong):
            if self.max_length_difference is None or _length_gap(chosen, rejected) <= self.max_length_difference:
                texts = chosen.row.text, rejected.row.text
                matches.setdefault(texts, Match(chosen, rejected, common_prefix(*texts)))
        best = sorted(matches.values(), key=lambda one: (-one.prefix, _length_gap(one.chosen, one.rejected)))
        return best[: self.per_prompt]


def common_prefix(one: str, other: str) -> int:
    """How many characters two texts begin alike with."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by bisection, as slices compare at C speed
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _length_gap(one: Candidate, other: Candidate) -> int:
    return abs(one.row.n_tokens - other.row.n_tokens)


def _pair(match: Match, reward: str) -> Pair:
    chosen, rejected = match.chosen.row, match.rejected.row
    return Pair(
        id=f"{chosen.prompt_id}#{chosen.sample}>{rejected.sample}",
        messages=chosen.prompt,
        chosen=_message(match.chosen.turn),
        rejected=_message(match.rejected.turn),
        margin=match.chosen.value - match.rejected.value,
        kind=reward,
        mode=chosen.mode,
        flag=chosen.flag,
        source=chosen.source,
        meta={**chosen.meta, "common_prefix": match.prefix},
    )


def _message(turn: Turn) -> Message:
    return Message(role="assistant", content=turn.answer, thinking=turn.thinking)

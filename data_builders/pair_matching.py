"""Chooses which answers to one prompt become preference pairs, by the rules that all pair builders share."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from qwen_align.align.rows import Message
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.sieve import Drops

Rule = Literal["correct_vs_wrong", "best_vs_worst", "online_dpo_r1"]
_EQUAL = "equal answers of different worth"


class Candidate(NamedTuple):
    """An answer that may be chosen or rejected in a preference pair, with its value, length and message.

    `text` is what common beginnings are measured on. One that is not `well_formed` can only be rejected.
    """

    name: str
    text: str
    value: float
    length: int
    message: Message
    well_formed: bool = True


class Match(NamedTuple):
    """A chosen and a rejected answer with the length of their common prefix in characters."""

    chosen: Candidate
    rejected: Candidate
    prefix: int

    @property
    def margin(self) -> float:
        """Returns the value of the chosen answer minus the value of the rejected answer."""
        return self.chosen.value - self.rejected.value

    @property
    def length_gap(self) -> int:
        """Returns the absolute difference in length between the chosen and the rejected answer."""
        return abs(self.chosen.length - self.rejected.length)


class NoMatch(NamedTuple):
    """The reason, short and countable, why a prompt makes no preference pair, with a detail."""

    reason: str
    detail: str


class Matching(Strict):
    """Settings of how preference pairs are chosen among the answers to a prompt, and of how many.

    correct_vs_wrong: an answer worth `correct_from` over one worth less, those with the longest common beginning
    first: sides that part late differ in what made one of them wrong, and sides of like length leave DPO less to learn
    about length. best_vs_worst: the largest margins first, every answer in one pair at most. online_dpo_r1: the first
    best over the first worst if their values differ, one pair, no other condition (Online-DPO-R1 dd35ca9,
    dpo_iteration/run_dpo.py and reward_labeling.py). Two answers that are equal make no pair, whatever they are worth.
    """

    rule: Rule = Field(default="correct_vs_wrong", description="how answers are paired")
    correct_from: float = Field(default=1.0, description="lowest reward of a correct completion; below is wrong")
    per_prompt: int = Field(default=2, ge=1, description="most pairs made of a prompt")
    max_length_difference: int | None = Field(
        default=None, ge=0, description="most tokens that the sides may differ by in length; null: any"
    )
    min_margin: float | None = Field(
        default=None, gt=0, description="smallest difference of the sides' values; null: any"
    )

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        """Raises ValueError for settings that the chosen matching rule does not use."""
        idle_settings = {"best_vs_worst": {"correct_from"}, "correct_vs_wrong": set()}.get(
            self.rule, {"correct_from", "per_prompt", "max_length_difference", "min_margin"}
        )
        if idle_given := sorted(idle_settings & self.model_fields_set):
            raise ValueError(f"{', '.join(idle_given)}: rule '{self.rule}' does not look at it; leave it out")
        return self

    def select_matches(self, candidates: Sequence[Candidate]) -> list[Match] | NoMatch:
        """Selects the preference pairs among one prompt's answers by the rule.

        Two answers of equal text never make a pair. Candidates come in the order of their samples.
        """
        if self.rule == "correct_vs_wrong":
            return self._match_correct_with_wrong(candidates)
        well_formed = [candidate for candidate in candidates if candidate.well_formed]
        if not well_formed or len(candidates) < 2:
            n_usable = f"of {len(candidates)} usable completions"
            return NoMatch("no usable completion" if not well_formed else "one usable completion", n_usable)
        if max(candidate.value for candidate in well_formed) <= min(candidate.value for candidate in candidates):
            return NoMatch("tie", f"of {len(candidates)} usable completions, each worth {well_formed[0].value:.6g}")
        if self.rule == "online_dpo_r1":
            best, worst = (
                max(well_formed, key=lambda candidate: candidate.value),
                min(candidates, key=lambda candidate: candidate.value),
            )
            if _are_equal_answers(best, worst):
                return NoMatch(_EQUAL, f"of {len(candidates)} usable completions")
            return [Match(best, worst, measure_common_prefix(best.text, worst.text))]
        return self._match_best_with_worst(well_formed, candidates)

    def _match_correct_with_wrong(self, candidates: Sequence[Candidate]) -> list[Match] | NoMatch:
        """Pairs correct answers with wrong ones, the pairs with the longest common prefix first."""
        correct = [
            candidate for candidate in candidates if candidate.well_formed and candidate.value >= self.correct_from
        ]
        wrong = [candidate for candidate in candidates if candidate.value < self.correct_from]
        if not correct or not wrong:
            reason = "no correct completion" if not correct else "no wrong completion"
            return NoMatch(reason, f"of {len(candidates)} usable completions")
        allowed = self._filter_matches(product(correct, wrong), f"of {len(correct)} correct and {len(wrong)} wrong")
        if isinstance(allowed, NoMatch):
            return allowed
        return sorted(allowed, key=lambda match: (-match.prefix, match.length_gap))[: self.per_prompt]

    def _match_best_with_worst(
        self, chosen: Sequence[Candidate], rejected: Sequence[Candidate]
    ) -> list[Match] | NoMatch:
        """Pairs answers by the largest difference in value, using every answer at most once."""
        differing = ((better, worse) for better, worse in product(chosen, rejected) if better.value > worse.value)
        allowed = self._filter_matches(differing, f"of {len(rejected)} usable completions")
        if isinstance(allowed, NoMatch):
            return allowed
        chosen_matches: list[Match] = []
        used: set[str] = set()
        for match in sorted(allowed, key=lambda match: -match.margin):  # stable: of equal margins the first samples'
            if not used & {match.chosen.text, match.rejected.text}:
                chosen_matches.append(match)
                used |= {match.chosen.text, match.rejected.text}
        return chosen_matches[: self.per_prompt]

    def _filter_matches(self, sides: Iterable[tuple[Candidate, Candidate]], of: str) -> list[Match] | NoMatch:
        """Returns the pairs within the limits of length and margin, or the reason why none is.

        Of pairs of the same two texts one is returned.
        """
        matches: dict[tuple[str, str], Match] = {}
        n_differing = n_alike = 0
        for chosen, rejected in sides:
            if _are_equal_answers(chosen, rejected):
                continue
            n_differing += 1
            match = Match(chosen, rejected, 0)
            if self.max_length_difference is not None and match.length_gap > self.max_length_difference:
                continue
            n_alike += 1
            if self.min_margin is None or match.margin >= self.min_margin:
                texts = chosen.text, rejected.text
                if texts not in matches:
                    matches[texts] = match._replace(prefix=measure_common_prefix(*texts))
        if matches:
            return list(matches.values())
        if not n_differing:
            return NoMatch(_EQUAL, of)
        return NoMatch("margin too small" if n_alike else "no pair of like length", of)


def _are_equal_answers(left: Candidate, right: Candidate) -> bool:
    """Returns whether two answers are equal apart from white space around them."""
    return left.text.strip() == right.text.strip() or left.message == right.message


def record_unpaired(
    result: list[Match] | NoMatch, candidates: Iterable[Candidate], prompt_id: str, drops: Drops
) -> None:
    """Records a prompt without a preference pair, and every answer that is in no pair, as dropped."""
    matches = [] if isinstance(result, NoMatch) else result
    paired = {side.name for match in matches for side in (match.chosen, match.rejected)}
    if isinstance(result, NoMatch):
        drops.add(result.reason, prompt_id, result.detail)
    detail = result.reason if isinstance(result, NoMatch) else f"others make {len(matches)}"
    for candidate in candidates:
        if candidate.name not in paired:
            drops.add("in no pair", f"{prompt_id}#{candidate.name}", detail)


def measure_common_prefix(left: str, right: str) -> int:
    """Returns the length of the common prefix of two texts in characters."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # by bisection, as slices compare at C speed
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low

"""Builds preference pairs of a better and a worse completion of a rollout for the same prompt."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Message, Pair, Row
from qwen_align.data_builders.pair_matching import Candidate, Match, Matching, NoMatch, record_unpaired
from qwen_align.data_builders.rollout_completions import get_verdict_value, group_by_prompt, read_completions
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.thinking import split_turn


class Pairs(Matching):
    """A builder of at most `per_prompt` preference pairs per prompt from the judged completions of a rollout.

    `rule` chooses the pairs; the verdicts may be those of any reward or reward model. Completions without a verdict are
    no sides. Those cut at the length limit or with a malformed thinking block are none either, unless
    `reject_malformed` lets them be rejected, word for word as the model said them, which the sieve's
    `thinking_is_clean` has to allow; an end of turn is put after them, as Online-DPO-R1 does.
    """

    kind: Literal["pairs"] = "pairs"
    from_data: DataRef = Field(description="rollout stage with the completions")
    reward: str = Field(
        default="math_answer", min_length=1, description="reward whose verdicts compare the completions"
    )
    reject_malformed: bool = Field(
        default=False, description="let cut or malformed completions be the rejected side, word for word"
    )

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the preference pairs in the order of the prompts.

        Prompts that make none and completions in none are dropped.
        """
        for prompt_id, rows in group_by_prompt(read_completions(sources[self.from_data], self.from_data)).items():
            candidates = [candidate for row in rows if (candidate := self._make_candidate(row, drops)) is not None]
            matches = self.select_matches(candidates)
            record_unpaired(matches, candidates, prompt_id, drops)
            if isinstance(matches, NoMatch):
                continue
            row_of = {str(row.sample): row for row in rows}
            yield from (_make_pair(match, row_of[match.chosen.name], self.reward) for match in matches)

    def _make_candidate(self, row: Completion, drops: Drops) -> Candidate | None:
        """Returns a completion as a candidate for one side of a preference pair.

        Returns None, and drops the completion, if it cannot be one.
        """
        value = get_verdict_value(row, self.reward)
        turn = split_turn(row.text)
        is_cut = row.finish_reason == "length"
        if value is None:
            drops.add("no verdict", row.id, row.verdicts[self.reward].reason)
        elif (is_cut or isinstance(turn, str)) and self.reject_malformed:
            raw = Message(role="assistant", content=row.text)
            return Candidate(str(row.sample), row.text, value, row.n_tokens, raw, well_formed=False)
        elif is_cut:
            drops.add("cut at the length limit", row.id)
        elif isinstance(turn, str):
            drops.add("malformed turn", row.id, turn)
        else:
            message = Message(role="assistant", content=turn.answer, thinking=turn.thinking)
            return Candidate(str(row.sample), row.text, value, row.n_tokens, message)
        return None


def _make_pair(match: Match, row: Completion, reward: str) -> Pair:
    """Makes the preference pair row of a matched chosen and rejected completion."""
    return Pair(
        id=f"{row.prompt_id}#{match.chosen.name}>{match.rejected.name}",
        messages=row.prompt,
        chosen=match.chosen.message,
        rejected=match.rejected.message,
        margin=match.margin,
        kind=reward,
        mode=row.mode,
        flag=row.flag,
        source=row.source,
        meta={**row.meta, "common_prefix": match.prefix},
    )

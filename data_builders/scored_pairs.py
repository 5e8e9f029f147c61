"""Pairs from files of prompts with several responses and their scores, as a reward model writes them."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from qwen_align.align.rows import Pair, Row, RowError
from qwen_align.data_builders.bad_row_errors import quoted
from qwen_align.data_builders.finite_numbers import finite
from qwen_align.data_builders.judged_answer_files import JudgedFile, at, pair_fields
from qwen_align.data_builders.pair_matching import NoMatch, Rule, count_unpaired
from qwen_align.data_builders.sieve import Drops, Sources


class ScoredPairs(JudgedFile):
    """The better over the worse response, by `rule`.

    The keys' names are those of Online-DPO-R1's files (dd35ca9, dpo_iteration/run_dpo.py): a prompt, a list of
    responses, a list of as many rewards. Scores of a rollout's own completions are for `pairs`. A reward of null is
    counted as not judged.
    """

    kind: Literal["scored_pairs"] = "scored_pairs"
    rule: Rule = "best_vs_worst"
    question: str = Field(default="prompt", min_length=1, description="the file's key of the prompt")
    responses: str = Field(default="responses", min_length=1, description="the file's key of the responses")
    scores: str = Field(default="rewards", min_length=1, description="the file's key of their scores")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Rows in the file's order; prompts that make no pair and responses in none are dropped."""
        for where, row_id, row in self.objects():
            group = self.group(row_id, self.asked(row, where), list(self._judged(row, where, row_id, drops)))
            for answer_id, reason in group.malformed:
                drops.add("malformed turn", answer_id, reason)
            found = self.matches(group.answers)
            count_unpaired(found, group.answers, row_id, drops)
            if isinstance(found, NoMatch):
                continue
            for match in found:
                yield Pair(kind=self.scores, mode=self.mode, source=self.source, **pair_fields(group, match))

    def _judged(self, row: dict[str, Any], where: str, row_id: str, drops: Drops) -> Iterator[tuple[str, str, float]]:
        responses, scores = at(row, self.responses, where), at(row, self.scores, where)
        if not isinstance(responses, list) or not isinstance(scores, list) or len(responses) != len(scores):
            raise RowError(f"{where}: '{self.responses}' and '{self.scores}' have to be lists of one length")
        for place, (text, score) in enumerate(zip(responses, scores, strict=True)):
            if not isinstance(text, str):
                raise RowError(f"{where}: '{self.responses}' holds {text!r:.40}, not a text")
            if score is None:
                drops.add("no verdict", f"{row_id}#{place}")
            elif (value := finite(score)) is None:
                raise RowError(f"{where}: '{self.scores}' holds {quoted(score)}, not a number that a float can hold")
            else:
                yield str(place), text, value

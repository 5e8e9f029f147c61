"""Builds preference pairs from files of prompts with several responses scored by a reward model."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from qwen_align.align.rows import Pair, Row, RowError
from qwen_align.data_builders.bad_row_errors import shorten_repr
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.finite_numbers import to_finite_float
from qwen_align.data_builders.judged_answer_files import JudgedFile, make_pair_fields, read_field
from qwen_align.data_builders.pair_matching import NoMatch, Rule, record_unpaired
from qwen_align.data_builders.sieve import Drops


class ScoredPairs(JudgedFile):
    """A builder of preference pairs from a file of prompts with several scored responses.

    `rule` chooses the pairs of a better over a worse response. The keys' names are those of Online-DPO-R1's files
    (dd35ca9, dpo_iteration/run_dpo.py): a prompt, a list of responses, a list of as many rewards. Scores of a rollout's
    own completions are for `pairs`. A reward of null is counted as not judged.
    """

    kind: Literal["scored_pairs"] = "scored_pairs"
    rule: Rule = Field(default="best_vs_worst", description="how answers are paired")
    question: str = Field(default="prompt", min_length=1, description="key of the prompt in the file")
    responses: str = Field(default="responses", min_length=1, description="key of the list of responses in the file")
    scores: str = Field(default="rewards", min_length=1, description="key of the list of their scores in the file")

    def make_rows(self, report: Report, drops: Drops) -> Iterator[Row]:
        """Yields the preference pairs in the file's order.

        Prompts that make no pair and responses in none are dropped.
        """
        for where, row_id, row in self.read_objects(report, "pair"):
            group = self.group_answers(
                row_id, self.make_prompt(row, where), list(self._read_scored_responses(row, where, row_id, drops))
            )
            for answer_id, reason in group.malformed:
                drops.add("malformed turn", answer_id, reason)
            matches = self.select_matches(group.answers)
            record_unpaired(matches, group.answers, row_id, drops)
            if isinstance(matches, NoMatch):
                continue
            for match in matches:
                yield Pair(kind=self.scores, mode=self.mode, source=self.source, **make_pair_fields(group, match))

    def _read_scored_responses(
        self, row: dict[str, Any], where: str, row_id: str, drops: Drops
    ) -> Iterator[tuple[str, str, float]]:
        """Yields each response of a row as (name, text, score). Raises RowError for lists of unequal length."""
        responses, scores = read_field(row, self.responses, where), read_field(row, self.scores, where)
        if not isinstance(responses, list) or not isinstance(scores, list) or len(responses) != len(scores):
            raise RowError(f"{where}: '{self.responses}' and '{self.scores}' have to be lists of one length")
        for index, (text, score) in enumerate(zip(responses, scores, strict=True)):
            if not isinstance(text, str):
                raise RowError(f"{where}: '{self.responses}' holds {text!r:.40}, not a text")
            if score is None:
                drops.add("no verdict", f"{row_id}#{index}")
            elif (value := to_finite_float(score)) is None:
                raise RowError(
                    f"{where}: '{self.scores}' holds {shorten_repr(score)}, not a number that a float can hold"
                )
            else:
                yield str(index), text, value

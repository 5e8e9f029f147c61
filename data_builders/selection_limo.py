"""Selects data as LIMO does: questions of medium difficulty, and for each the solution with the best score.

A strong model solves the questions now and then, a weak model never. arXiv:2502.03387v3. The authors published the
rows, not the code: the rule's four measures and their weights are theirs; the word lists, how lengths are counted and
how the measures are brought to one scale are undisclosed, so those are our choice.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from math import fsum
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Row, RowError, Trace
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.completions_to_traces import make_trace
from qwen_align.data_builders.rollout_completions import get_verdict_value
from qwen_align.data_builders.selection_inputs import Attempts, add_note_to_meta, compute_rank_shares, get_prompt_id
from qwen_align.data_builders.selection_pass_rate import Band, BandName, resolve_band
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.thinking import split_turn

WORD = re.compile(r"[^\W\d_]+")

# The first two of each list are the paper's examples, the others and the inflected forms our choice.
VERIFICATION = (
    "check verify checks checked checking verifies verified verifying verification confirm confirms confirmed"
)
TENTATIVE = "perhaps might maybe possibly probably likely could seems seem suppose wondering unsure"
CONNECTIVES = "therefore since because thus hence so then consequently accordingly implies"


class Measures(NamedTuple):
    """Four measures of a solution: its number of words, and the share of words in each word list."""

    length: float
    verification: float
    tentative: float
    connectives: float


class ChainScore(Strict):
    """Settings of a score for reasoning chains: a weighted mean of the chain's ranks by four measures.

    A rank is 1 for the highest, 0 for the lowest. Lengths are words, keywords are counted as shares of the words.
    Places, not values, are weighed, so that one extreme chain does not flatten the others' differences.
    """

    length: float = Field(default=0.30, ge=0, description="weight of the number of words")
    verification: float = Field(default=0.20, ge=0, description="weight of the share of verification words")
    tentative: float = Field(default=0.25, ge=0, description="weight of the share of tentative words")
    connectives: float = Field(default=0.25, ge=0, description="weight of the share of connectives")
    verification_words: list[str] = Field(
        default=VERIFICATION.split(), description="words that show verification, in lower case"
    )
    tentative_words: list[str] = Field(
        default=TENTATIVE.split(), description="words that show tentative reasoning, in lower case"
    )
    connective_words: list[str] = Field(
        default=CONNECTIVES.split(), description="words that connect arguments, in lower case"
    )

    @field_validator("verification_words", "tentative_words", "connective_words")
    @classmethod
    def _check_words(cls, words: list[str]) -> list[str]:
        """Raises ValueError unless each entry of a word list is one word in lower case."""
        for word in words:
            if WORD.fullmatch(word) is None or word != word.lower():
                raise ValueError(f"'{word}': is not one word of small letters")
        return words

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        """Raises ValueError if the weights of the four measures do not add up to 1."""
        total = sum(self.weights)
        if not 0.999 < total < 1.001:
            raise ValueError(f"length, verification, tentative and connectives are {total:.4g} in all, not 1")
        return self

    @property
    def weights(self) -> Measures:
        """Returns the weights of the four measures."""
        return Measures(self.length, self.verification, self.tentative, self.connectives)

    def measure_chain(self, chain: str) -> Measures:
        """Returns the number of words in a reasoning chain and the share of words in each word list.

        All are 0 without words.
        """
        counts = Counter(WORD.findall(chain.lower()))
        n_words = counts.total()
        lists = (self.verification_words, self.tentative_words, self.connective_words)
        shares = (sum(counts[word] for word in set(words)) / max(1, n_words) for words in lists)
        return Measures(n_words, *shares)

    def score_chains(self, chains: Sequence[str]) -> list[float]:
        """Scores each reasoning chain from 0 to 1 by its ranks among all the given chains."""
        if not chains:
            return []
        rank_columns = [
            compute_rank_shares(measure_column) for measure_column in zip(*map(self.measure_chain, chains), strict=True)
        ]
        # fsum, as sum() rounds otherwise from Python 3.12 on
        return [
            fsum(weight * rank for weight, rank in zip(self.weights, ranks, strict=True))
            for ranks in zip(*rank_columns, strict=True)
        ]


class Limo(Strict):
    """A builder that selects the best reasoning chain of each of the `n` best questions.

    Chains come from traces and from rollouts' right completions. A question is one prompt's id. Those that the weak
    model solved at all are dropped, then those that the strong model did not solve as often as `band` says. Rows come
    by score, the best first; meta `limo` holds score and rank.
    """

    kind: Literal["limo"] = "limo"
    from_data: Annotated[list[DataRef], Field(min_length=1)] = Field(
        description="data or rollout stages with the chains"
    )  # LIMO: of R1, its 32B distillation and QwQ-32B
    reward: str = Field(
        default="math_answer", description="reward whose verdict says whether a rollout's chain is right"
    )
    correct_from: float = Field(default=1.0, description="lowest reward of a right chain")
    weak: Attempts | None = Field(
        description="weak model, which must fail (LIMO: 4 attempts of Qwen2.5-Math-7B-Instruct); null: no test"
    )
    strong: Attempts | None = Field(
        description="strong model, for band (LIMO: 32 attempts of DeepSeek-R1-Distill-Qwen-32B); null: no test"
    )
    band: Band | BandName = Field(
        default="limo",
        description="how often the strong model must have solved a question: a published band by its name, or bounds",
    )
    score: ChainScore = Field(default=ChainScore(), description="how chains are scored")
    n: int | None = Field(
        default=800, ge=1, description="number of questions to keep; null: every question's best chain"
    )

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the selected traces, the best first. Raises DataError if there are fewer questions than `n`."""
        chains = list(self._filter_by_difficulty(self._read_chains(sources, drops), sources, drops))
        scored = list(
            zip(
                chains,
                self.score.score_chains([_join_thinking_and_answer(chain.trace) for chain in chains]),
                strict=True,
            )
        )
        scored.sort(key=lambda pair: -pair[1])  # of equal ones the earlier stays first
        best: dict[str, tuple[Chain, float]] = {}
        for chain, score in scored:
            if best.setdefault(chain.prompt_id, (chain, score))[0] is not chain:
                drops.add("not its question's best chain", chain.trace.id, f"{score:.4f}, stage '{chain.stage}'")
        if self.n is not None and len(best) < self.n:
            raise DataError(f"limo: {len(best)} questions are left, fewer than n: {self.n}; lower n or widen band")
        for rank, (chain, score) in enumerate(best.values(), start=1):
            if self.n is not None and rank > self.n:
                drops.add("ranked below n", chain.trace.id, f"{score:.4f}, rank {rank}")
            else:
                facts = {"score": score, "rank": rank, "stage": chain.stage}
                yield add_note_to_meta(chain.trace, "limo", facts)

    def _read_chains(self, sources: Sources, drops: Drops) -> Iterator["Chain"]:
        """Yields the reasoning chains of all stages. Completions that cannot be used are dropped."""
        for stage in self.from_data:
            for row in sources[stage]():
                if isinstance(row, Trace):
                    yield Chain(get_prompt_id(row.id), row, stage)
                elif isinstance(row, Completion):
                    converted = self._convert_completion(row)
                    if isinstance(converted, Trace):
                        yield Chain(row.prompt_id, converted, stage)
                    else:
                        drops.add(converted, row.id, f"stage '{stage}'")
                else:
                    raise RowError(f"stage '{stage}': row '{row.id}' is a {row.row} row; chains are traces or rollouts")

    def _convert_completion(self, row: Completion) -> Trace | str:
        """Converts a completion to a trace, or returns the reason why it cannot be used."""
        value, turn = get_verdict_value(row, self.reward), split_turn(row.text)
        if value is None or value < self.correct_from:
            return "no verdict" if value is None else "wrong"
        if row.finish_reason == "length":
            return "cut at the length limit"
        if isinstance(turn, str) or turn.thinking is None:
            return "malformed turn" if isinstance(turn, str) else "no thinking"
        return make_trace(row, turn.thinking, turn.answer, row.reward or self.reward)

    def _filter_by_difficulty(self, chains: Iterator["Chain"], sources: Sources, drops: Drops) -> Iterator["Chain"]:
        """Yields the chains of questions that the weak model never solves and the strong model solves within `band`.

        The strong one need not have tried what fails first.
        """
        tests = [
            ("weak model", attempts.make_reader(sources), Band(max_correct=0)) for attempts in (self.weak,) if attempts
        ]
        tests += [
            ("strong model", attempts.make_reader(sources), resolve_band(self.band))
            for attempts in (self.strong,)
            if attempts
        ]
        for chain in chains:
            for model, read, band in tests:
                tries = read(chain.trace)
                fault = "no judged answer" if tries is None else band.find_fault(tries)
                if fault is not None:
                    drops.add(f"{model}: {fault}", chain.trace.id, tries.description if tries else "")
                    break
            else:
                yield chain


class Chain(NamedTuple):
    """A reasoning chain (trace) and the stage it comes from."""

    prompt_id: str
    trace: Trace
    stage: str


def _join_thinking_and_answer(trace: Trace) -> str:
    """Joins a trace's thinking and answer into one text."""
    return f"{trace.thinking}\n\n{trace.answer}"

"""Builds cold-start data by rejection sampling of long chains of thought with six filters, as in Qwen3.

Qwen3 (arXiv:2505.09388, section 4.1) drops responses that are wrong, repeat much, guess, disagree between thinking and
summary, mix languages, or are too like validation items, and keeps a small subset. It gives no numbers: those here are
our choice, each a setting.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Row, Trace
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.completions_to_traces import convert_solved_completion
from qwen_align.data_builders.contamination import Benchmark, Contamination, find_contamination, read_benchmarks
from qwen_align.data_builders.guess_detection import find_guess_reason
from qwen_align.data_builders.rollout_completions import group_by_prompt, read_completions
from qwen_align.data_builders.seeded_draws import shuffle_by_name
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.language import LanguageShare
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.repetition import compute_repeated_share, split_words
from qwen_align.reward.settings import RewardName


class Fault(NamedTuple):
    """The reason why a completion is dropped, with a detail."""

    reason: str
    detail: str


class ColdStart(Strict):
    """A builder that keeps at most `per_prompt` traces per prompt among those that pass every filter.

    It counts the completions that do not pass. Before the filters go those that did not think, were cut, have a
    malformed block or no verdict.
    """

    kind: Literal["cold_start"] = "cold_start"
    from_rollout: DataRef = Field(description="rollout stage with the completions to choose from")
    validation: list[Contamination] = Field(
        description="rules for held-out items that traces may not be like; [] if nothing is held out"
    )
    reward: RewardName = Field(
        default="math_answer", description="reward whose verdict says whether a completion is correct"
    )
    correct_from: float = Field(default=1.0, description="lowest reward of a correct completion")
    repeats_ngram: int = Field(
        default=20,
        ge=1,
        description="words in an n-gram whose repetition counts; sound mathematics repeats shorter ones all the time",
    )
    max_repeated_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest share of the completion's n-grams that may have occurred in it before",
    )
    min_thinking_words: int = Field(
        default=3, ge=1, description="fewest words of thinking; with fewer the answer counts as a guess"
    )
    answer_in_thinking: bool = Field(
        default=True, description="count a number that is the answer but never occurs in the thinking as a guess"
    )
    min_language_share: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="smallest share of words in the prompt's language, in thinking and answer each",
    )
    per_prompt: int = Field(default=1, ge=1, description="most traces kept for a prompt")
    choose: Literal["first", "shortest", "longest", "random"] = Field(
        default="first", description="which of a prompt's traces are kept, by their samples' numbers or tokens"
    )
    max_prompts: int | None = Field(
        default=None, ge=1, description="keep traces of this many prompts, drawn by the seed; null: of all"
    )

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the kept traces in the order of their prompts.

        A prompt without any is dropped too, with what its completions lacked.
        """
        benchmarks = read_benchmarks(self.validation, sources)
        traces_of_prompt: dict[str, list[Trace]] = {}
        for prompt_id, rows in group_by_prompt(read_completions(sources[self.from_rollout], self.from_rollout)).items():
            traces = self._filter_prompt_traces(prompt_id, rows, benchmarks, drops)
            if traces:
                traces_of_prompt[prompt_id] = self._choose_traces(traces, rows, seed, drops)
        prompt_ids = list(traces_of_prompt)
        if self.max_prompts is not None:
            prompt_ids = shuffle_by_name(prompt_ids, prompt_ids, "cold_start prompts", seed)[: self.max_prompts]
        drawn_ids = set(prompt_ids)
        for prompt_id, traces in traces_of_prompt.items():
            for trace in traces:
                if prompt_id in drawn_ids:
                    yield trace
                else:
                    drops.add("over max_prompts", trace.id)

    def find_fault(self, row: Completion, trace: Trace) -> Fault | None:
        """Returns the first filter that a trace fails: repetition, guessing, disagreement or mixed languages.

        Returns None if it passes all.
        """
        share = compute_repeated_share(split_words(row.text), self.repeats_ngram)
        if share is not None and share > self.max_repeated_share:
            return Fault("repetitive", f"{share:.2f} of its {self.repeats_ngram}-grams were there before")
        guess_reason = find_guess_reason(
            trace.thinking, trace.answer, self.min_thinking_words, numbers=self.answer_in_thinking
        )
        if guess_reason is not None:
            return Fault("guessed", guess_reason)
        disagreement = find_disagreement(trace.thinking, trace.answer)
        if disagreement is not None:
            return Fault("thinking and summary disagree", disagreement)
        verdict = _LANGUAGE.judge(row)
        if verdict.reason in ("mixed languages", "wrong language") and (verdict.value or 0.0) < self.min_language_share:
            return Fault("mixed language", f"{verdict.value or 0.0:.2f} in the prompt's language")
        return None

    def _filter_prompt_traces(
        self, prompt_id: str, rows: list[Completion], benchmarks: list[Benchmark], drops: Drops
    ) -> list[Trace]:
        """Returns the traces of one prompt that pass every filter, and drops its other completions."""
        reasons: Counter[str] = Counter()
        traces: dict[str, Trace] = {}
        for row in rows:
            converted = convert_solved_completion(row, self.reward, self.correct_from)
            fault = Fault(converted, "") if isinstance(converted, str) else self.find_fault(row, converted)
            if fault is None and row.text in traces:
                fault = Fault("duplicate", f"of {traces[row.text].id}")
            if fault is None and isinstance(converted, Trace):
                fault = _find_validation_overlap(converted, benchmarks)
                if fault is None:
                    traces[row.text] = converted
                    continue
            assert fault is not None
            drops.add(fault.reason, row.id, fault.detail)
            reasons[fault.reason] += 1
        if not traces:
            drops.add("prompt without a trace", prompt_id, ", ".join(f"{n} {reason}" for reason, n in reasons.items()))
        return list(traces.values())

    def _choose_traces(self, traces: list[Trace], rows: list[Completion], seed: int, drops: Drops) -> list[Trace]:
        """Chooses at most `per_prompt` traces of a prompt by the setting `choose`, and drops the rest."""
        if self.choose == "random":
            traces = shuffle_by_name(traces, (trace.id for trace in traces), "cold_start", seed)
        elif self.choose != "first":
            n_tokens, sign = {row.id: row.n_tokens for row in rows}, 1 if self.choose == "shortest" else -1
            traces = sorted(traces, key=lambda trace: sign * n_tokens[trace.id])
        for trace in traces[self.per_prompt :]:
            drops.add("over per_prompt", trace.id)
        return traces[: self.per_prompt]


_LANGUAGE = LanguageShare(target="prompt", where="both")
_BOXED = MathAnswer(box="required")
_ANSWER = MathAnswer()


def find_disagreement(thinking: str, summary: str) -> str | None:
    """Compares the last boxed answer of the thinking with the answer of the final summary.

    Returns both where both exist and differ, else None.
    """
    thought_answer, summary_answer = _BOXED.answer(thinking), _ANSWER.answer(summary)
    if thought_answer is None or summary_answer is None or thought_answer == summary_answer:
        return None
    return f"thought {thought_answer:.80}, said {summary_answer:.80}"


def _find_validation_overlap(trace: Trace, benchmarks: list[Benchmark]) -> Fault | None:
    """Returns the overlap of a trace with held-out validation questions as a fault. Returns None if there is none."""
    contaminated = find_contamination(trace, benchmarks)
    if contaminated is None:
        return None
    reason, overlap = contaminated
    rule = reason.removeprefix("contaminated: ")
    return Fault("too near to validation", f"{rule}: {overlap.question}: {overlap.shared}"[:200])

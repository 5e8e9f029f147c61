"""Rejection sampling of long chains of thought, with the six filters of Qwen3's cold start.

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
from qwen_align.data_builders.completions import by_prompt, completions
from qwen_align.data_builders.contamination import Benchmark, Contamination, contamination, read_benchmarks
from qwen_align.data_builders.guessing import guess_in
from qwen_align.data_builders.seeded_draws import drawn_order
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.solved_traces import solved_trace
from qwen_align.reward.language import LanguageShare
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.repetition import compute_repeated_share, split_words
from qwen_align.reward.settings import RewardName


class Fault(NamedTuple):
    """Why a completion is not kept."""

    reason: str
    detail: str


class ColdStart(Strict):
    """At most `per_prompt` traces a prompt that pass every filter; every completion that does not is counted.

    Before the filters go those that did not think, were cut, have a malformed block or no verdict.
    """

    kind: Literal["cold_start"] = "cold_start"
    from_rollout: DataRef
    validation: list[Contamination] = Field(
        description="what traces may not be like, each with its rule; [] if nothing is held out"
    )
    reward: RewardName = Field(default="math_answer", description="whose verdict says that a completion is correct")
    correct_from: float = Field(default=1.0, description="reward of a correct completion")
    repeats_ngram: int = Field(
        default=20, ge=1, description="words; sound mathematics repeats shorter ones all the time"
    )
    max_repeated_share: float = Field(default=0.1, ge=0, le=1, description="of the completion's n-grams")
    min_thinking_words: int = Field(default=3, ge=1, description="fewer are a guess")
    answer_in_thinking: bool = Field(
        default=True, description="a number that is the answer, but never met in the thinking, is a guess"
    )
    min_language_share: float = Field(
        default=0.9, ge=0, le=1, description="words in the prompt's language, of thinking and answer each"
    )
    per_prompt: int = Field(default=1, ge=1)
    choose: Literal["first", "shortest", "longest", "random"] = Field(
        default="first", description="which of a prompt's traces, by their samples' numbers or tokens"
    )
    max_prompts: int | None = Field(default=None, ge=1, description="a small subset, drawn by the seed")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Traces in the order of the prompts; a prompt without any is dropped too, with what its completions lacked."""
        benchmarks = read_benchmarks(self.validation, sources)
        kept: dict[str, list[Trace]] = {}
        for prompt_id, rows in by_prompt(completions(sources[self.from_rollout], self.from_rollout)).items():
            traces = self._of_prompt(prompt_id, rows, benchmarks, drops)
            if traces:
                kept[prompt_id] = self._chosen(traces, rows, seed, drops)
        drawn = list(kept)
        if self.max_prompts is not None:
            drawn = drawn_order(drawn, drawn, "cold_start prompts", seed)[: self.max_prompts]
        wanted = set(drawn)
        for prompt_id, traces in kept.items():
            for trace in traces:
                if prompt_id in wanted:
                    yield trace
                else:
                    drops.add("over max_prompts", trace.id)

    def fault(self, row: Completion, trace: Trace) -> Fault | None:
        """The first of the filters for repeats, guesses, disagreement and languages that a trace does not pass."""
        share = compute_repeated_share(split_words(row.text), self.repeats_ngram)
        if share is not None and share > self.max_repeated_share:
            return Fault("repetitive", f"{share:.2f} of its {self.repeats_ngram}-grams were there before")
        guess = guess_in(trace.thinking, trace.answer, self.min_thinking_words, numbers=self.answer_in_thinking)
        if guess is not None:
            return Fault("guessed", guess)
        apart = disagreement(trace.thinking, trace.answer)
        if apart is not None:
            return Fault("thinking and summary disagree", apart)
        said = _LANGUAGE.judge(row)
        if said.reason in ("mixed languages", "wrong language") and (said.value or 0.0) < self.min_language_share:
            return Fault("mixed language", f"{said.value or 0.0:.2f} in the prompt's language")
        return None

    def _of_prompt(
        self, prompt_id: str, rows: list[Completion], benchmarks: list[Benchmark], drops: Drops
    ) -> list[Trace]:
        reasons: Counter[str] = Counter()
        traces: dict[str, Trace] = {}
        for row in rows:
            found = solved_trace(row, self.reward, self.correct_from)
            fault = Fault(found, "") if isinstance(found, str) else self.fault(row, found)
            if fault is None and row.text in traces:
                fault = Fault("duplicate", f"of {traces[row.text].id}")
            if fault is None and isinstance(found, Trace):
                fault = _nearness(found, benchmarks)
                if fault is None:
                    traces[row.text] = found
                    continue
            assert fault is not None
            drops.add(fault.reason, row.id, fault.detail)
            reasons[fault.reason] += 1
        if not traces:
            drops.add("prompt without a trace", prompt_id, ", ".join(f"{n} {reason}" for reason, n in reasons.items()))
        return list(traces.values())

    def _chosen(self, traces: list[Trace], rows: list[Completion], seed: int, drops: Drops) -> list[Trace]:
        if self.choose == "random":
            traces = drawn_order(traces, (trace.id for trace in traces), "cold_start", seed)
        elif self.choose != "first":
            n_tokens, sign = {row.id: row.n_tokens for row in rows}, 1 if self.choose == "shortest" else -1
            traces = sorted(traces, key=lambda trace: sign * n_tokens[trace.id])
        for trace in traces[self.per_prompt :]:
            drops.add("over per_prompt", trace.id)
        return traces[: self.per_prompt]


_LANGUAGE = LanguageShare(target="prompt", where="both")
_BOXED = MathAnswer(box="required")
_ANSWER = MathAnswer()


def disagreement(thinking: str, summary: str) -> str | None:
    """The last box of the thinking and the answer of the summary, where both are there and not the same."""
    thought, said = _BOXED.answer(thinking), _ANSWER.answer(summary)
    if thought is None or said is None or thought == said:
        return None
    return f"thought {thought:.80}, said {said:.80}"


def _nearness(trace: Trace, benchmarks: list[Benchmark]) -> Fault | None:
    found = contamination(trace, benchmarks)
    if found is None:
        return None
    reason, overlap = found
    rule = reason.removeprefix("contaminated: ")
    return Fault("too near to validation", f"{rule}: {overlap.question}: {overlap.shared}"[:200])

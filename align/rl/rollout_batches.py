"""Collects the rollout batches of a training run one after another, and keeps the state that a checkpoint needs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from qwen_align.align.context import Context
from qwen_align.align.generation.engine import Engine
from qwen_align.align.generation.requests import RenderedProblem
from qwen_align.align.rl.algorithm import Algorithm
from qwen_align.align.rl.collect import RolloutBatch, RolloutSetup, collect_groups, wait_for_verdicts
from qwen_align.align.rl.held_out import HeldOutFigures, describe_first_rollouts, measure_held_out
from qwen_align.align.rl.judge import Judge
from qwen_align.align.rl.prefetched import load_batch
from qwen_align.align.rl.prompt_stream import PromptStream

PENDING = "pending.json"


class HeldOutQuestions:
    """The questions of the held-out set, with their sampling settings and the judge of their completions.

    `max_no_verdict_share`: the largest share of completions without a verdict with which they are measured.
    """

    def __init__(
        self,
        setup: RolloutSetup,
        questions: Sequence[RenderedProblem],
        judge: Judge,
        max_no_verdict_share: float,
    ) -> None:
        self.setup, self.questions, self.judge = setup, questions, judge
        self.max_no_verdict_share = max_no_verdict_share


class RolloutSource:
    """A source of the rollout batches of a training run, one per step.

    There are `settings.steps` of them; with `async_steps` each is sampled a step ahead. `score_drawn` computes the
    log-probs of such a batch with the policy that has just drawn it, before that policy is updated. `hold_weights`
    returns a context manager in which the engine's model is whole, where processes hold parts of it.
    """

    score_drawn: Callable[[RolloutBatch], Tensor] | None = None
    hold_weights: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(
        self,
        algorithm: Algorithm,
        setup: RolloutSetup,
        stream: PromptStream,
        judge: Judge,
        context: Context,
        held_out_questions: HeldOutQuestions | None = None,
    ) -> None:
        self.algorithm, self.settings = algorithm, algorithm.settings
        self.setup, self.stream, self.judge, self.context = setup, stream, judge, context
        self.held_out_questions = held_out_questions
        self.batches = 0  # begun
        self.counts: Counter[str] = Counter()  # over the whole run
        self._prefetched: RolloutBatch | None = None

    @property
    def engine(self) -> Engine:
        """Returns the engine that samples the completions."""
        return self.setup.engine

    def use_engine(self, engine: Engine) -> None:
        """Sets the engine that samples all completions from now on."""
        self.setup = self.setup._replace(engine=engine)
        if self.held_out_questions is not None:
            self.held_out_questions.setup = self.held_out_questions.setup._replace(engine=engine)

    def collect_next_batch(self, model: Any, logged_at: int) -> RolloutBatch:
        """Collects the next rollout batch and waits for its verdicts.

        `model` is the policy as it is now, `logged_at` the optimiser step to come.
        """
        step, self.batches = self.batches, self.batches + 1
        if self.settings.async_steps:
            batch = self._prefetched or self._collect_batch(step, model, logged_at)
            is_last = step + 1 == self.settings.steps
            self._prefetched = None if is_last else self._collect_batch(step + 1, model, logged_at)
        else:
            batch = self._collect_batch(step, model, logged_at)
        with self.context.work_on("score", step=logged_at):  # a reward may be a model
            wait_for_verdicts(batch, self.setup, self.stream, f"batch {step + 1}")
        self._count_verdicts(batch)
        return batch

    def report_first_rollouts(self) -> None:
        """Logs a note on a few rollouts sampled before training starts."""
        with self._draw_in_phase(None, self.settings.completions_per_prompt):
            note = describe_first_rollouts(self.setup, self.stream.problems, self.judge)
        self.context.log_note(0, "preflight", note)

    def find_longest_sequence(self) -> int:
        """Returns the most tokens that a prompt and its completion can have, in training or on the held-out set."""
        asked = [(self.setup, self.stream.problems)]
        if self.held_out_questions is not None:
            asked.append((self.held_out_questions.setup, self.held_out_questions.questions))
        return max(len(each.prompt.ids) + setup.sampling.max_tokens for setup, prompts in asked for each in prompts)

    def measure_held_out(self, model: Any) -> HeldOutFigures:
        """Measures the policy on the held-out set."""
        assert self.held_out_questions is not None
        self._sync_weights(model)
        held_out = self.held_out_questions
        with self._draw_in_phase(None, len(held_out.questions) * held_out.setup.n_samples):
            return measure_held_out(
                held_out.setup, held_out.questions, held_out.judge, max_no_verdict_share=held_out.max_no_verdict_share
            )

    @contextmanager
    def _draw_in_phase(self, step: int | None, n_completions: int) -> Iterator[None]:
        """Sets the context's phase to `draw` inside a context manager, in which the engine's model is whole."""
        longest = self.find_longest_sequence()
        with self.context.work_on("draw", step=step, rows=n_completions, longest_row=longest), self.hold_weights():
            yield

    @property
    def is_evaluation_due(self) -> bool:
        """Returns whether the held-out set is to be evaluated before the next rollout batch."""
        held_out = self.settings.held_out
        return held_out is not None and self.batches % held_out.every_steps == 0

    def _collect_batch(self, step: int, model: Any, logged_at: int) -> RolloutBatch:
        """Collects the groups of a step with the policy's present weights.

        Logs a note where too few have a signal.
        """
        settings = self.settings
        self._sync_weights(model, logged_at)
        with self._draw_in_phase(logged_at, settings.prompts_per_step * settings.completions_per_prompt):
            batch = collect_groups(
                self.setup,
                self.stream,
                self.judge,
                step=step,
                n_prompts=settings.prompts_per_step,
                max_prompts=self.algorithm.max_prompts,
            )
        if batch.groups and len(batch.groups) < settings.prompts_per_step:
            self.context.log_note(
                logged_at,
                "dynamic_sampling",
                f"only {len(batch.groups)} of {settings.prompts_per_step} groups with a signal among "
                f"{len(batch.tried)} prompts; each trains as heavily as in a full step. "
                "Raise max_prompts, or take prompts solved now and then",
            )
        if settings.async_steps and self.score_drawn and batch.groups:
            batch.scored_logps = self.score_drawn(batch)
        return batch

    def _sync_weights(self, model: Any, logged_at: int | None = None) -> None:
        """Sends the policy's weights to an engine that samples from a copy.

        Raises StageError where the engine's are others afterwards.
        """
        if self.engine.has_own_weights:
            with self.context.work_on("sync", step=logged_at):
                self.engine.sync_weights(model, self.batches)

    def _count_verdicts(self, batch: RolloutBatch) -> None:
        """Adds the batch's completions, groups and verdict reasons to the counts of the run."""
        judged = [each for group in batch.tried for each in group.judged]
        self.counts["completions"] += len(judged)
        self.counts["groups"] += len(batch.tried)
        self.counts["groups without signal"] += sum(not group.has_signal for group in batch.tried)
        self.counts["cut at max_tokens"] += sum(each.completion.finish_reason == "length" for each in judged)
        for each in judged:
            for label, part in (each.verdict.parts or {}).items():
                self.counts[f"{label}: {part.reason}"] += 1
            if each.verdict.value is None:
                self.counts["no verdict"] += 1
        if not batch.groups:
            self.counts["skipped batches"] += 1

    def to_state(self) -> dict[str, Any]:
        """Returns the run's batch number, counts and prompt stream as a JSON object for a checkpoint.

        A prefetched batch is no part of it.
        """
        return {"batches": self.batches, "counts": dict(self.counts), "stream": self.stream.to_state()}

    @property
    def prefetched(self) -> RolloutBatch | None:
        """Returns the rollout batch sampled a step ahead, if any, which a checkpoint has to hold too."""
        return self._prefetched

    def restore_state(self, state: dict[str, Any], folder: Path) -> None:
        """Restores the run's batch number, counts, prompt stream and prefetched batch from a checkpoint."""
        self.batches, self.counts = state["batches"], Counter(state["counts"])
        self.stream.restore_state(state["stream"])
        path, renderer = folder / PENDING, self.setup.renderer
        self._prefetched = load_batch(path, self.stream.problems, renderer) if path.exists() else None

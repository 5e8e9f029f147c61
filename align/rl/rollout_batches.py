"""The batches of completions that a run trains on, one after another, and all that decides what the next one holds."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.generation.engine import Engine
from qwen_align.align.generation.requests import Asked
from qwen_align.align.rl import prefetched
from qwen_align.align.rl.collect import Played, Player, play, settle
from qwen_align.align.rl.held_out import accuracy, preflight
from qwen_align.align.rl.judge import Judge
from qwen_align.align.rl.prompt_stream import PromptStream
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.ppo import Ppo

PENDING = "pending.json"


class Questions:
    """What is evaluated beside training."""

    def __init__(self, player: Player, asked: Sequence[Asked], judge: Judge) -> None:
        self.player, self.asked, self.judge = player, asked, judge


class Experience:
    """Plays `spec.steps` batches; with `async_steps` each a step before it is asked for."""

    def __init__(
        self,
        spec: Grpo | Ppo,
        player: Player,
        stream: PromptStream,
        judge: Judge,
        context: Context,
        questions: Questions | None = None,
    ) -> None:
        self.spec, self.player, self.stream, self.judge, self.context = spec, player, stream, judge, context
        self.questions = questions
        self.batches = 0  # begun
        self.counts: Counter[str] = Counter()  # over the whole run
        self._ahead: Played | None = None

    @property
    def engine(self) -> Engine:
        return self.player.engine

    def use(self, engine: Engine) -> None:
        """From now on completions come from this engine."""
        self.player = self.player._replace(engine=engine)
        if self.questions is not None:
            self.questions.player = self.questions.player._replace(engine=engine)

    def next(self, model: Any, logged_at: int) -> Played:
        """The next batch, judged; `model` is the policy as it is now, `logged_at` the optimiser step to come."""
        step, self.batches = self.batches, self.batches + 1
        if self.spec.async_steps:
            played = self._ahead or self._play(step, model, logged_at)
            self._ahead = self._play(step + 1, model, logged_at) if step + 1 < self.spec.steps else None
        else:
            played = self._play(step, model, logged_at)
        settle(played, self.player, self.stream, f"batch {step + 1}")
        self._count(played)
        return played

    def preflight(self) -> None:
        """Tells people what a few rollouts look like before anything is trained."""
        self.context.log_note(0, "preflight", preflight(self.player, self.stream.asked, self.judge))

    def held_out(self, model: Any) -> tuple[float, float]:
        """Accuracy on the questions held out and its standard error."""
        assert self.questions is not None
        self._sync(model)
        found = accuracy(self.questions.player, self.questions.asked, self.questions.judge)
        return found.mean, found.stderr

    @property
    def evaluates_now(self) -> bool:
        """Whether the questions are due before the next batch."""
        held_out = self.spec.held_out
        return held_out is not None and self.batches % held_out.every_steps == 0

    def _play(self, step: int, model: Any, logged_at: int) -> Played:
        spec = self.spec
        self._sync(model)
        dynamic = spec.dynamic_sampling if isinstance(spec, Grpo) else None
        most = dynamic.max_prompts if dynamic else None
        played = play(self.player, self.stream, self.judge, step=step, prompts=spec.prompts_per_step, most_prompts=most)
        if played.groups and len(played.groups) < spec.prompts_per_step:
            self.context.log_note(
                logged_at,
                "dynamic_sampling",
                f"only {len(played.groups)} of {spec.prompts_per_step} groups with a signal among "
                f"{len(played.tried)} prompts; each trains as heavily as in a full step. "
                "Raise max_prompts, or take prompts solved now and then",
            )
        return played

    def _sync(self, model: Any) -> None:
        """Hands the weights over, if they are not the engine's own; raises StageError when others arrived."""
        if not self.engine.holds_a_copy:
            return
        held = self.engine.sync(model, self.batches)
        if held is not None and held != self.engine.checksum(model):
            raise StageError(
                f"batch {self.batches}: the engine's weights are not the policy's after they were sent: "
                f"checksum {held}, and {self.engine.checksum(model)} here"
            )

    def _count(self, played: Played) -> None:
        judged = [one for group in played.tried for one in group.judged]
        self.counts["completions"] += len(judged)
        self.counts["groups"] += len(played.tried)
        self.counts["groups without signal"] += sum(not group.has_signal for group in played.tried)
        self.counts["cut at max_tokens"] += sum(one.row.finish_reason == "length" for one in judged)
        for one in judged:
            for label, part in (one.verdict.parts or {}).items():
                self.counts[f"{label}: {part.reason}"] += 1
            if one.verdict.value is None:
                self.counts["no verdict"] += 1
        if not played.groups:
            self.counts["skipped batches"] += 1

    def state(self) -> dict[str, Any]:
        return {"batches": self.batches, "counts": dict(self.counts), "stream": self.stream.state()}

    def save_ahead(self, folder: Path) -> None:
        if self._ahead is not None:
            prefetched.save(self._ahead, folder / PENDING)

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        self.batches, self.counts = state["batches"], Counter(state["counts"])
        self.stream.restore(state["stream"])
        path = folder / PENDING
        self._ahead = prefetched.load(path, self.stream.asked, self.player.renderer) if path.exists() else None

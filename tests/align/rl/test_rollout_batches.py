"""What a sampler with weights of its own is told: every batch comes from the policy as it is then, or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen_align.align.context import Context
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.requests import RenderedProblem
from qwen_align.align.rendering.renderer import Prompt
from qwen_align.align.rl.algorithm import build_grpo
from qwen_align.align.rl.collect import RolloutSetup
from qwen_align.align.rl.judge import Judge
from qwen_align.align.rl.prompt_stream import PromptStream
from qwen_align.align.rl.rollout_batches import HeldOutQuestions, RolloutSource
from qwen_align.align.rows import Message, Problem
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import Shuffled
from qwen_align.align.settings.runtime import Runtime
from qwen_align.reward.verdict import Verdict


class Copying:
    """An engine with a copy of the weights."""

    has_own_weights = True

    def __init__(self, model: nn.Module) -> None:
        self.held = nn.Linear(2, 2)
        self.held.load_state_dict(model.state_dict())
        self.drew_with: list[float] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        self.drew_with.append(float(self.held.weight[0, 0].detach()))
        for request in requests:
            for sample in request.sample_numbers:
                yield Generation(request, sample, [1], [-0.5], [-0.5], "stop")

    def sync_weights(self, model: nn.Module, version: int) -> None:
        self.held.load_state_dict(model.state_dict())


class Words:
    """In the place of a renderer."""

    @staticmethod
    def decode(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def rollout_source(engine: Copying, folder: Path) -> RolloutSource:
    problem = Problem(id="p", messages=[Message(role="user", content="?")], reward="math_answer")
    asked = [RenderedProblem(problem, None, None, Prompt([3], ""))]
    spec = Grpo.model_validate(
        {
            "name": "grpo",
            "kind": "grpo",
            "from_model": "base",
            "from_data": ["problems"],
            "rewards": [{"kind": "math_answer"}],
            "steps": 3,
            "prompts_per_step": 1,
            "completions_per_prompt": 2,
            "sampling": {"temperature": 1.0, "max_tokens": 1},
            "learning_rate": 1e-3,
        }
    )
    renderer: Any = Words()
    player = RolloutSetup(engine, renderer, spec.sampling.resolve_for_policy(), 2, 0, lambda verdict: True)
    judge = Judge(lambda group: [Verdict(value=float(one.sample), reason="toy") for one in group])
    stream = PromptStream(asked, Shuffled(), seed=0)
    return RolloutSource(build_grpo(spec), player, stream, judge, Context(folder, 0, Runtime()))


def test_every_batch_is_drawn_with_the_weights_of_its_moment(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    engine = Copying(model)
    batches = rollout_source(engine, tmp_path)
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            model.weight.fill_(value)
        batches.collect_next_batch(model, 1)
    assert engine.drew_with == [1.0, 2.0, 3.0]


def test_every_draw_finds_the_weights_held_whole_and_none_stay_so(tmp_path: Path) -> None:
    """As where processes hold parts of them: before the first step, for a batch, on the held-out set."""
    model = nn.Linear(2, 2)
    engine = Copying(model)
    source = rollout_source(engine, tmp_path)
    source.held_out_questions = HeldOutQuestions(source.setup, source.stream.problems, source.judge, 1.0)
    held, was_held = [], []
    draw = engine.generate

    @contextmanager
    def hold() -> Iterator[None]:
        held.append(True)
        yield
        held.pop()

    def watch(requests: Sequence[Request]) -> Iterator[Generation]:
        was_held.append(bool(held))
        yield from draw(requests)

    source.hold_weights, engine.generate = hold, watch  # type: ignore[method-assign]
    source.report_first_rollouts()
    source.collect_next_batch(model, 1)
    source.measure_held_out(model)
    assert was_held == [True, True, True]
    assert not held

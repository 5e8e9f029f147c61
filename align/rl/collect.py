"""Collects a step's rollouts: draws prompts, samples completions and gets their verdicts.

Groups without a signal are replaced where dynamic sampling asks for it.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from qwen_align.align.evaluation.scoring import require_verdicts
from qwen_align.align.generation.engine import Engine, Generation, Request
from qwen_align.align.generation.requests import build_completion
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rl.judge import Judge, JudgedCompletion
from qwen_align.align.rl.prompt_stream import PromptDraw, PromptStream
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.rows import Completion
from qwen_align.align.settings.sampling import Sampling
from qwen_align.align.training.distributed import gather_objects, get_rank, get_world_size
from qwen_align.reward.verdict import Verdict


class RolloutSetup(NamedTuple):
    """Engine, renderer and sampling settings with which completions are sampled, and the test of a solved task.

    `is_solved` says whether a verdict means that the task was done, None where it does not tell.
    """

    engine: Engine
    renderer: Renderer
    sampling: Sampling
    n_samples: int  # completions per prompt
    seed: int
    is_solved: Callable[[Verdict], bool | None]


@dataclass
class Group:
    """The completions of one prompt, in order of sample number, with verdicts that may still be pending."""

    draw: PromptDraw
    generations: list[Generation]
    verdicts: "Future[list[JudgedCompletion]] | list[JudgedCompletion]"

    @property
    def judged(self) -> list[JudgedCompletion]:
        """Waits for the verdicts of the group and returns its completions with them."""
        return self.verdicts if isinstance(self.verdicts, list) else self.verdicts.result()

    @property
    def values(self) -> list[float | None]:
        """Returns the reward of each completion in the group.

        It is None where there is no verdict.
        """
        return [each.verdict.value for each in self.judged]

    @property
    def has_signal(self) -> bool:
        """Returns whether the rewards of the group's completions differ.

        Otherwise none can be preferred to another.
        """
        known = {value for value in self.values if value is not None}
        return len(known) > 1

    @property
    def equal_value(self) -> float | None:
        """Returns the reward that all judged completions of the group have.

        It is None where they differ, and where none has a verdict.
        """
        known = {value for value in self.values if value is not None}
        return known.pop() if len(known) == 1 else None


@dataclass
class RolloutBatch:
    """The groups of completions that a training step uses, and the seconds spent on sampling and waiting."""

    groups: list[Group]
    tried: list[Group] = field(default_factory=list)  # all, those without signal included
    n_wanted: int = 0
    seconds_sampling: float = 0.0
    seconds_waiting: float = 0.0  # for verdicts, after the last completion
    # flat, of the groups' tokens: log-probs that the trainer computed with the policy that drew, while it was that
    scored_logps: torch.Tensor | None = None

    @property
    def share(self) -> float:
        """Returns the number of groups as a share of those wanted for a full step."""
        return len(self.groups) / max(self.n_wanted, 1)


def sample_groups(setup: RolloutSetup, draws: Sequence[PromptDraw], judge: Judge, step: int) -> list[Group]:
    """Samples a group of completions for each prompt and submits each complete group to the judge.

    Of n processes each samples every n-th group, and all get all of them, judged.
    """
    rank, world = (get_rank(), get_world_size())
    own_draws = list(draws)[rank::world]
    requests = [
        Request(
            id=draw.request_id,
            prompt_ids=draw.rendered.prompt.ids,
            n=setup.n_samples,
            sampling=setup.sampling,
            seed=setup.seed,
            step=step,
        )
        for draw in own_draws
    ]
    draw_by_id = {draw.request_id: draw for draw in own_draws}
    incomplete: dict[str, list[Generation]] = {draw.request_id: [] for draw in own_draws}
    groups: dict[str, Group] = {}
    for generation in setup.engine.generate(requests):
        request_id = generation.request.id
        incomplete[request_id].append(generation)
        if len(incomplete[request_id]) == setup.n_samples:
            draw = draw_by_id[request_id]
            generations = sorted(incomplete.pop(request_id), key=lambda generation: generation.sample)
            completions = [build_completion(draw.rendered, each, setup.renderer) for each in generations]
            groups[request_id] = Group(draw, generations, judge.submit_group(completions))
    return _gather_groups([groups[draw.request_id] for draw in own_draws], draws, world)


def collect_groups(
    setup: RolloutSetup, stream: PromptStream, judge: Judge, *, step: int, n_prompts: int, max_prompts: int | None
) -> RolloutBatch:
    """Collects `n_prompts` groups of completions for a training step.

    With `max_prompts` groups without a signal are replaced by those of the next prompts, and at most so many prompts
    are tried. Verdicts are waited for only where the next prompts depend on them.
    """
    started = time.monotonic()
    batch = RolloutBatch([], n_wanted=n_prompts)
    while len(batch.groups) < n_prompts:
        room = (n_prompts if max_prompts is None else max_prompts) - len(batch.tried)
        n = min(n_prompts - len(batch.groups), room)
        if n <= 0:
            break
        groups = sample_groups(setup, stream.take_prompts(n), judge, step)
        batch.tried += groups
        batch.groups += groups if max_prompts is None else [group for group in groups if group.has_signal]
    batch.seconds_sampling = time.monotonic() - started
    return batch


def wait_for_verdicts(batch: RolloutBatch, setup: RolloutSetup, stream: PromptStream, where: str) -> None:
    """Waits for the batch's pending verdicts and records each prompt's pass rate in the prompt stream.

    Raises StageError when there is none: training would go on and learn nothing.
    """
    started = time.monotonic()
    judged = [each for group in batch.tried for each in group.judged]
    batch.seconds_waiting = time.monotonic() - started
    require_verdicts([each.verdict for each in judged], where)
    for group in batch.tried:
        rate = compute_solved_share(group.judged, setup)
        if rate is not None:
            stream.record_pass_rate(group.draw.rendered.problem.id, rate)


def compute_solved_share(judged: Sequence[JudgedCompletion], setup: RolloutSetup) -> float | None:
    """Returns the share of solved tasks among the judged completions.

    Completions whose verdict does not tell are left out. Returns None if none tells.
    """
    outcomes = [outcome for each in judged if (outcome := setup.is_solved(each.verdict)) is not None]
    return sum(outcomes) / len(outcomes) if outcomes else None


def build_rollouts(batch: RolloutBatch, *, mask_truncated: bool = False, with_verdicts: bool = True) -> Rollouts:
    """Converts a rollout batch to tensors, group by group.

    The advantages are still zero. Pending verdicts are waited for, or left out if `with_verdicts` is false.
    """
    generations = [generation for group in batch.groups for generation in group.generations]
    values: list[float | None] = [None] * len(generations)
    if with_verdicts:
        values = [value for group in batch.groups for value in group.values]
    sizes = [len(group.generations) for group in batch.groups]
    truncated = torch.tensor([each.finish_reason == "length" for each in generations], dtype=torch.bool)
    logps = torch.tensor([logp for each in generations for logp in each.logps], dtype=torch.float32)
    sampled_logps = [logp for each in generations for logp in each.sampled_logps]
    return Rollouts(
        ids=torch.tensor(
            [token for each in generations for token in (*each.request.prompt_ids, *each.token_ids)]
        ).long(),
        n_prompt=torch.tensor([len(each.request.prompt_ids) for each in generations]).long(),
        n_tokens=torch.tensor([len(each.token_ids) for each in generations]).long(),
        group=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes).long()),
        reward=torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32),
        truncated=truncated,
        old_logps=logps,
        sampled_logps=torch.tensor(sampled_logps, dtype=torch.float32),
        counts=~truncated if mask_truncated else torch.ones_like(truncated),
        advantages=torch.zeros_like(logps),
        share=batch.share,
        loss_mask=torch.tensor([in_loss for each in generations for in_loss in each.loss_mask], dtype=torch.bool),
    )


def _gather_groups(own_groups: list[Group], draws: Sequence[PromptDraw], world: int) -> list[Group]:
    """Gathers the groups of all processes and returns them in the order of the prompt draws.

    With more than one process they are judged first.
    """
    if world == 1:
        return own_groups
    packed = [(group.draw.position, group.generations, _pack_verdicts(group.judged)) for group in own_groups]
    by_position = {
        position: (generations, judged) for part in gather_objects(packed) for position, generations, judged in part
    }
    groups = []
    for draw in draws:
        generations, judged = by_position[draw.position]
        groups.append(Group(draw, generations, [JudgedCompletion(row, verdict) for row, verdict in judged]))
    return groups


def _pack_verdicts(judged: Sequence[JudgedCompletion]) -> list[tuple[Completion, Any]]:
    """Converts judged completions to plain tuples, which can be sent between processes."""
    return [(each.completion, each.verdict) for each in judged]

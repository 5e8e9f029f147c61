"""A step's play: prompts from the stream, completions from the engine, verdicts, and groups without signal replaced."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from qwen_align.align.generation.engine import Engine, Generation, Request
from qwen_align.align.generation.requests import as_row
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rl.judge import Judge, Judged, check_judged
from qwen_align.align.rl.prompt_stream import Drawn, PromptStream
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.rows import Completion
from qwen_align.align.settings.sampling import Sampling
from qwen_align.align.training.distributed import gather_objects, get_rank, get_world_size
from qwen_align.reward.verdict import Verdict


class Player(NamedTuple):
    """What plays."""

    engine: Engine
    renderer: Renderer
    sampling: Sampling
    samples: int
    seed: int
    solved: Callable[[Verdict], bool | None]  # what a verdict says of the task


@dataclass
class Group:
    """The completions of one prompt, by sample; verdicts come later."""

    drawn: Drawn
    generations: list[Generation]
    verdicts: "Future[list[Judged]] | list[Judged]"

    @property
    def judged(self) -> list[Judged]:
        """Waits for the verdicts."""
        return self.verdicts if isinstance(self.verdicts, list) else self.verdicts.result()

    @property
    def values(self) -> list[float | None]:
        return [one.verdict.value for one in self.judged]

    @property
    def has_signal(self) -> bool:
        """Whether its completions differ in reward, so that one can be preferred to another."""
        known = {value for value in self.values if value is not None}
        return len(known) > 1


@dataclass
class Played:
    """A step's groups, in the order of the stream, and what finding them took."""

    groups: list[Group]
    tried: list[Group] = field(default_factory=list)  # all, those without signal included
    wanted: int = 0
    seconds_sampling: float = 0.0
    seconds_waiting: float = 0.0  # for verdicts, after the last completion

    @property
    def share(self) -> float:
        """Of the groups that a full step has."""
        return len(self.groups) / max(self.wanted, 1)


def draw(player: Player, drawn: Sequence[Drawn], judge: Judge, step: int) -> list[Group]:
    """A group for each prompt; every group goes to the judge as soon as it is whole.

    Of several processes each draws the groups of its turn, and all get all of them, judged.
    """
    rank, world = (get_rank(), get_world_size())
    mine = list(drawn)[rank::world]
    requests = [
        Request(
            id=one.name,
            prompt_ids=one.asked.prompt.ids,
            n=player.samples,
            sampling=player.sampling,
            seed=player.seed,
            step=step,
        )
        for one in mine
    ]
    by_name = {one.name: one for one in mine}
    waiting: dict[str, list[Generation]] = {one.name: [] for one in mine}
    found: dict[str, Group] = {}
    for generation in player.engine.generate(requests):
        name = generation.request.id
        waiting[name].append(generation)
        if len(waiting[name]) == player.samples:
            done = sorted(waiting.pop(name), key=lambda one: one.sample)
            rows = [as_row(by_name[name].asked, one, player.renderer) for one in done]
            found[name] = Group(by_name[name], done, judge.submit(rows))
    return _from_all([found[one.name] for one in mine], drawn, world)


def play(
    player: Player, stream: PromptStream, judge: Judge, *, step: int, prompts: int, most_prompts: int | None
) -> Played:
    """`prompts` groups; with `most_prompts` groups without signal are replaced by the next prompts, up to so many.

    Verdicts are waited for only where the next prompts depend on them.
    """
    started = time.monotonic()
    played = Played([], wanted=prompts)
    while len(played.groups) < prompts:
        tried = len(played.tried)
        room = prompts if most_prompts is None else most_prompts
        n = min(prompts - len(played.groups), room - tried)
        if n <= 0:
            break
        groups = draw(player, stream.take(n), judge, step)
        played.tried += groups
        played.groups += groups if most_prompts is None else [one for one in groups if one.has_signal]
    played.seconds_sampling = time.monotonic() - started
    return played


def settle(played: Played, player: Player, stream: PromptStream, where: str) -> None:
    """Waits for the verdicts that are still out and tells the stream what share of each prompt was solved."""
    started = time.monotonic()
    everything = [one for group in played.tried for one in group.judged]
    played.seconds_waiting = time.monotonic() - started
    check_judged(everything, where)
    for group in played.tried:
        rate = solved_share(group.judged, player)
        if rate is not None:
            stream.note(group.drawn.asked.problem.id, rate)


def solved_share(judged: Sequence[Judged], player: Player) -> float | None:
    """The share that was solved of those of which that can be said; None if it cannot be said of any."""
    said = [found for one in judged if (found := player.solved(one.verdict)) is not None]
    return sum(said) / len(said) if said else None


def assembled(played: Played, *, mask_truncated: bool) -> Rollouts:
    """The step's completions as tensors, group by group; advantages are still zero."""
    done = [one for group in played.groups for one in group.generations]
    values = [value for group in played.groups for value in group.values]
    samples = [len(group.generations) for group in played.groups]
    truncated = torch.tensor([one.finish_reason == "length" for one in done], dtype=torch.bool)
    logps = torch.tensor([logp for one in done for logp in one.logps], dtype=torch.float32)
    return Rollouts(
        ids=torch.tensor([token for one in done for token in (*one.request.prompt_ids, *one.token_ids)]).long(),
        n_prompt=torch.tensor([len(one.request.prompt_ids) for one in done]).long(),
        n_tokens=torch.tensor([len(one.token_ids) for one in done]).long(),
        group=torch.arange(len(samples)).repeat_interleave(torch.tensor(samples).long()),
        reward=torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32),
        truncated=truncated,
        old_logps=logps,
        sampled_logps=torch.tensor([logp for one in done for logp in one.sampled_logps], dtype=torch.float32),
        counts=~truncated if mask_truncated else torch.ones_like(truncated),
        advantages=torch.zeros_like(logps),
        share=played.share,
    )


def _from_all(mine: list[Group], drawn: Sequence[Drawn], world: int) -> list[Group]:
    """The groups of all processes in the order drawn; beyond one process with their verdicts, which go as rows."""
    if world == 1:
        return mine
    packed = [(one.drawn.place, one.generations, _packed(one.judged)) for one in mine]
    by_place = {place: (generations, judged) for part in gather_objects(packed) for place, generations, judged in part}
    groups = []
    for one in drawn:
        generations, judged = by_place[one.place]
        groups.append(Group(one, generations, [Judged(row, verdict) for row, verdict in judged]))
    return groups


def _packed(judged: Sequence[Judged]) -> list[tuple[Completion, Any]]:
    return [(one.row, one.verdict) for one in judged]

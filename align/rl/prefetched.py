"""Completions drawn a step ahead, to and from a file: what a checkpoint holds of them with `async_steps`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.requests import Asked, as_row
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rl.collect import Group, Played
from qwen_align.align.rl.judge import Judged
from qwen_align.align.rl.prompt_stream import Drawn
from qwen_align.align.settings.sampling import Sampling
from qwen_align.reward.verdict import Verdict


def save(played: Played, path: Path) -> None:
    """Waits for the verdicts that are out."""
    used = {id(group) for group in played.groups}
    groups = [{**_group(group), "is_used": id(group) in used} for group in played.tried]
    path.write_text(json.dumps({"wanted": played.wanted, "groups": groups}), encoding="utf-8")


def load(path: Path, asked: Sequence[Asked], renderer: Renderer) -> Played:
    """As it was saved, but for the seconds it took."""
    said = json.loads(path.read_text(encoding="utf-8"))
    by_id = {one.problem.id: one for one in asked}
    tried = [(_loaded(one, by_id, renderer), one["is_used"]) for one in said["groups"]]
    return Played([group for group, is_used in tried if is_used], [group for group, _ in tried], said["wanted"])


def _group(group: Group) -> dict[str, Any]:
    return {
        "place": group.drawn.place,
        "problem": group.drawn.asked.problem.id,
        "sampling": group.generations[0].request.sampling.model_dump(),
        "seed": group.generations[0].request.seed,
        "step": group.generations[0].request.step,
        "generations": [
            [one.sample, one.token_ids, one.logps, one.sampled_logps, one.finish_reason, one.loss_mask]
            for one in group.generations
        ],
        "verdicts": [one.verdict.model_dump() for one in group.judged],
    }


def _loaded(said: dict[str, Any], by_id: dict[str, Asked], renderer: Renderer) -> Group:
    drawn = Drawn(said["place"], by_id[said["problem"]])
    request = Request(
        id=drawn.name,
        prompt_ids=drawn.asked.prompt.ids,
        n=len(said["generations"]),
        sampling=Sampling.model_validate(said["sampling"]),
        seed=said["seed"],
        step=said["step"],
    )
    generations = [Generation(request, *one) for one in said["generations"]]
    verdicts = [Verdict.model_validate(one) for one in said["verdicts"]]
    rows = [as_row(drawn.asked, one, renderer) for one in generations]
    return Group(drawn, generations, [Judged(row, one) for row, one in zip(rows, verdicts, strict=True)])

"""Saves and loads the rollout batch that was sampled one step ahead.

A checkpoint holds it with `async_steps`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.requests import RenderedProblem, build_completion
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rl.collect import Group, RolloutBatch
from qwen_align.align.rl.judge import JudgedCompletion
from qwen_align.align.rl.prompt_stream import PromptDraw
from qwen_align.align.settings.sampling import Sampling
from qwen_align.reward.verdict import Verdict


def save_batch(batch: RolloutBatch, path: Path) -> None:
    """Writes a rollout batch to a JSON file, after waiting for its pending verdicts."""
    used = {id(group) for group in batch.groups}
    groups = [{**_dump_group(group), "is_used": id(group) in used} for group in batch.tried]
    logps = None if batch.scored_logps is None else batch.scored_logps.tolist()
    path.write_text(json.dumps({"wanted": batch.n_wanted, "groups": groups, "scored_logps": logps}), encoding="utf-8")


def load_batch(path: Path, problems: Sequence[RenderedProblem], renderer: Renderer) -> RolloutBatch:
    """Reads a rollout batch from a JSON file.

    The seconds it took are not stored.
    """
    saved = json.loads(path.read_text(encoding="utf-8"))
    by_id = {each.problem.id: each for each in problems}
    tried = [(_load_group(group, by_id, renderer), group["is_used"]) for group in saved["groups"]]
    logps = None if saved["scored_logps"] is None else torch.tensor(saved["scored_logps"], dtype=torch.float32)
    used = [group for group, is_used in tried if is_used]
    return RolloutBatch(used, [group for group, _ in tried], saved["wanted"], scored_logps=logps)


def _dump_group(group: Group) -> dict[str, Any]:
    """Converts a group of completions to a JSON object."""
    request = group.generations[0].request
    return {
        "place": group.draw.position,
        "problem": group.draw.rendered.problem.id,
        "sampling": request.sampling.model_dump(),
        "seed": request.seed,
        "step": request.step,
        "generations": [
            [each.sample, each.token_ids, each.logps, each.sampled_logps, each.finish_reason, each.loss_mask]
            for each in group.generations
        ],
        "verdicts": [each.verdict.model_dump() for each in group.judged],
    }


def _load_group(saved: dict[str, Any], by_id: dict[str, RenderedProblem], renderer: Renderer) -> Group:
    """Rebuilds a group of completions from its JSON object.

    Generations saved without a loss mask have every token in the loss.
    """
    draw = PromptDraw(saved["place"], by_id[saved["problem"]])
    request = Request(
        id=draw.request_id,
        prompt_ids=draw.rendered.prompt.ids,
        n=len(saved["generations"]),
        sampling=Sampling.model_validate(saved["sampling"]),
        seed=saved["seed"],
        step=saved["step"],
    )
    generations = [Generation(request, *fields) for fields in saved["generations"]]
    verdicts = [Verdict.model_validate(verdict) for verdict in saved["verdicts"]]
    completions = [build_completion(draw.rendered, each, renderer) for each in generations]
    judged = [JudgedCompletion(each, verdict) for each, verdict in zip(completions, verdicts, strict=True)]
    return Group(draw, generations, judged)

"""From rows to requests, and from generations to judged completions: what rollout, evaluate and RL share."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import Prompt, Renderer
from qwen_align.align.rows import Completion, Flag, Mode, Problem
from qwen_align.align.settings.rollout import QUESTION, Switch
from qwen_align.align.settings.sampling import Sampling, SamplingSettings

if TYPE_CHECKING:  # `check` puts prompts too, and starts without torch
    from qwen_align.align.generation.engine import Generation


class Asked(NamedTuple):
    """A problem as it is put to the model: mode, flag and the prompt's ids."""

    problem: Problem
    mode: Mode | None
    flag: Flag | None
    prompt: Prompt


def put(problem: Problem, renderer: Renderer, switch: Switch | None = None) -> Asked:
    """The problem under the switch, or under its own mode and flag without one."""
    mode = problem.mode if switch is None else switch.mode
    flag = problem.flag if switch is None else switch.flag
    where = f"problem '{problem.id}'"
    if switch and switch.prompt is not None:
        text = switch.prompt.replace(QUESTION, _only_question(problem, where))
        return Asked(problem, None, None, Prompt(renderer.encode(text), thinking_prefix=""))
    return Asked(problem, mode, flag, renderer.render_prompt(problem.messages, mode=mode, flag=flag, where=where))


def _only_question(problem: Problem, where: str) -> str:
    if [turn.role for turn in problem.messages] != ["user"]:
        raise TemplateError(
            f"{where}: a plain prompt has room for one user message, not for a chat or a system message"
        )
    return problem.messages[0].content


def drawn_as(mode: Mode | None, renderer: Renderer) -> Mode:
    """The mode whose sampling defaults hold: without one, what the template does by default."""
    return mode or renderer.traits.default_mode or "no_think"


def sampling_for(asked: Asked, renderer: Renderer, settings: SamplingSettings) -> Sampling:
    return settings.for_mode(drawn_as(asked.mode, renderer))


def as_row(asked: Asked, generation: "Generation", renderer: Renderer) -> Completion:
    """The generation as text, with what the prompt supplied of the thinking block put back in front."""
    problem = asked.problem
    return Completion(
        prompt_id=problem.id,
        sample=generation.sample,
        prompt=problem.messages,
        text=asked.prompt.thinking_prefix + renderer.decode(generation.token_ids),
        mode=asked.mode,
        flag=asked.flag,
        finish_reason=generation.finish_reason,
        n_tokens=len(generation.token_ids),
        gold=problem.gold,
        reward=problem.reward,
        source=problem.source,
        meta=problem.meta,
    )


def in_order(rows: Iterable[Completion], asked: Sequence[Asked]) -> list[Completion]:
    """By prompt as asked, then by sample: what is written does not depend on who finished first."""
    place = {one.problem.id: number for number, one in enumerate(asked)}
    return sorted(rows, key=lambda row: (place[row.prompt_id], row.sample))

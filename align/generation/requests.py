"""Renders problems as prompts and builds completion rows from generations.

Rollout, evaluate and RL share this.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import Prompt, Renderer
from qwen_align.align.rows import Completion, Flag, Mode, Problem
from qwen_align.align.settings.rollout import QUESTION, Switch
from qwen_align.align.settings.sampling import Sampling, SamplingSettings

if TYPE_CHECKING:  # `check` puts prompts too, and starts without torch
    from qwen_align.align.generation.engine import Generation


class RenderedProblem(NamedTuple):
    """A problem with the token ids of its prompt, its thinking mode and its mode flag."""

    problem: Problem
    mode: Mode | None
    flag: Flag | None
    prompt: Prompt


def render_problem(problem: Problem, renderer: Renderer, switch: Switch | None = None) -> RenderedProblem:
    """Renders the prompt of a problem in the mode of a thinking switch.

    Without a switch the problem's own mode and flag hold.
    """
    mode = problem.mode if switch is None else switch.mode
    flag = problem.flag if switch is None else switch.flag
    where = f"problem '{problem.id}'"
    if switch and switch.prompt is not None:
        text = switch.prompt.replace(QUESTION, _get_only_question(problem, where))
        return RenderedProblem(problem, None, None, Prompt(renderer.encode(text), thinking_prefix=""))
    return RenderedProblem(
        problem, mode, flag, renderer.render_prompt(problem.messages, mode=mode, flag=flag, where=where)
    )


def measure_prompts(rendered: Iterable[RenderedProblem]) -> list[tuple[str, int]]:
    """Returns the id of each problem with the number of tokens of its prompt."""
    return [(each.problem.id, len(each.prompt.ids)) for each in rendered]


def _get_only_question(problem: Problem, where: str) -> str:
    """Returns the text of a problem that consists of one user message.

    Raises TemplateError if it has other messages.
    """
    if [turn.role for turn in problem.messages] != ["user"]:
        raise TemplateError(
            f"{where}: a plain prompt has room for one user message, not for a chat or a system message"
        )
    return problem.messages[0].content


def resolve_mode(mode: Mode | None, renderer: Renderer) -> Mode:
    """Returns the thinking mode that selects sampling defaults.

    Without a mode it is what the chat template does by default.
    """
    return mode or renderer.traits.default_mode or "no_think"


def resolve_sampling(rendered: RenderedProblem, renderer: Renderer, settings: SamplingSettings) -> Sampling:
    """Returns how the problem's completions are sampled, with the defaults of its mode."""
    return settings.resolve_for_mode(resolve_mode(rendered.mode, renderer))


def build_completion(rendered: RenderedProblem, generation: "Generation", renderer: Renderer) -> Completion:
    """Decodes a generation into a completion row.

    Its text begins with what the prompt supplied of the thinking block.
    """
    problem = rendered.problem
    return Completion(
        prompt_id=problem.id,
        sample=generation.sample,
        prompt=problem.messages,
        text=rendered.prompt.thinking_prefix + renderer.decode(generation.token_ids),
        mode=rendered.mode,
        flag=rendered.flag,
        finish_reason=generation.finish_reason,
        n_tokens=len(generation.token_ids),
        gold=problem.gold,
        reward=problem.reward,
        source=problem.source,
        meta=problem.meta,
    )


def sort_completions(rows: Iterable[Completion], rendered: Sequence[RenderedProblem]) -> list[Completion]:
    """Sorts completions by the order of their prompts and then by sample number.

    So it does not matter which finished first.
    """
    order = {each.problem.id: number for number, each in enumerate(rendered)}
    return sorted(rows, key=lambda row: (order[row.prompt_id], row.sample))

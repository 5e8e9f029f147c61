"""How a problem is put to a model."""

from pathlib import Path

import pytest

from qwen_align.align.generation.requests import render_problem
from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Message, Problem
from qwen_align.align.settings.rollout import Switch

FOLDER = Path(__file__).parents[3] / "recipes" / "tiny_base"
PLAIN = Switch(method="plain", prompt="Question:\n{question}\nSteps:\n")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer.load(FOLDER)


def problem(*turns: tuple[str, str]) -> Problem:
    messages = [Message.model_validate({"role": role, "content": content}) for role, content in turns]
    return Problem(id="p", messages=messages, gold="1", reward="math_answer", source="", meta={}, mode="think")


def test_a_plain_prompt_is_the_text_and_nothing_else(renderer: Renderer) -> None:
    asked = render_problem(problem(("user", "Find {1}+2.")), renderer, PLAIN)
    assert renderer.tokenizer.decode(asked.prompt.ids, skip_special_tokens=False) == "Question:\nFind {1}+2.\nSteps:\n"
    assert (asked.mode, asked.flag, asked.prompt.thinking_prefix) == (None, None, "")


def test_a_plain_prompt_has_no_room_for_a_chat(renderer: Renderer) -> None:
    chat = problem(("user", "a"), ("assistant", "b"), ("user", "c"))
    with pytest.raises(TemplateError, match="problem 'p': a plain prompt has room for one user message"):
        render_problem(chat, renderer, PLAIN)
    with pytest.raises(TemplateError, match="system message"):
        render_problem(problem(("system", "s"), ("user", "a")), renderer, PLAIN)


def test_without_a_switch_the_problems_own_mode_holds(renderer: Renderer) -> None:
    assert render_problem(problem(("user", "a")), renderer).mode == "think"
    assert render_problem(problem(("user", "a")), renderer, Switch()).mode is None
    asked = render_problem(problem(("user", "a")), renderer, Switch(method="flag", mode="no_think"))
    assert (asked.mode, asked.flag) == ("no_think", "/no_think")

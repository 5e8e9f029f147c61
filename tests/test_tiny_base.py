"""The base that is shipped: it loads, it is small, and it can do what the ladder builds on."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen_align.align.rendering.tiny_tokenizer import CHAT_TEMPLATE
from qwen_align.align.rows import Problem
from qwen_align.data_builders.arithmetic import Arithmetic, format_raw_prompt

FOLDER = Path(str(files("qwen_align") / "recipes" / "tiny_base"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(FOLDER), padding_side="left")


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(str(FOLDER)).eval()


def test_it_is_a_small_safetensors_file(model: Any) -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert (FOLDER / "model.safetensors").stat().st_size <= 10_000_000
    assert 500_000 <= model.num_parameters() <= 2_000_000
    assert model.dtype == torch.float32
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "qwen3"


def test_its_control_tokens_are_the_models(model: Any, tokenizer: Any) -> None:
    end, turn_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (turn_end, end)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (turn_end, end)
    assert model.generation_config.eos_token_id == [turn_end, end]
    assert model.config.vocab_size == len(tokenizer)
    assert (FOLDER / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE


def test_plain_tokenizers_read_it_alike(tokenizer: Any) -> None:
    plain = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for row in Arithmetic(rows="problem", n=50, steps=[1, 2, 3], split="dev").generate(0):
        assert isinstance(row, Problem)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row.messages[0].content}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(prompt)["input_ids"]
        assert ids == plain.encode(prompt).ids
        assert plain.token_to_id("<|endoftext|>") not in ids
        assert len(ids) < 1.5 * len(re.findall(r"<[^>]+>|\w+|\S|\n", prompt)) + 10  # words are few tokens


def solved(model: Any, tokenizer: Any, *, steps: list[int], direct: bool) -> float:
    """Share of 100 dev problems answered right, greedily, in the base's own format."""
    problems = list(Arithmetic(rows="problem", n=100, steps=steps, split="dev").generate(11))
    prompts = [format_raw_prompt(p.messages[0].content, direct=direct) for p in problems if isinstance(p, Problem)]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = model.generate(**batch, do_sample=False, max_new_tokens=60)[:, batch.input_ids.shape[1] :]
    answers = [re.findall(r"\\boxed\{(\d+)\}$", text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return sum(answer == [p.gold] for answer, p in zip(answers, problems, strict=True) if isinstance(p, Problem)) / 100


# Bars lie some five standard errors under what was measured on 400 problems (see recipes/tiny_base.yaml); one
# answer in a hundred would be right by chance.
@pytest.mark.parametrize(("steps", "direct", "bar"), [([1, 2, 3], False, 0.9), ([1], True, 0.7)])
def test_it_solves_unseen_problems_in_its_own_format(
    model: Any, tokenizer: Any, steps: list[int], direct: bool, bar: float
) -> None:
    assert solved(model, tokenizer, steps=steps, direct=direct) >= bar


def test_it_does_not_know_the_chat_format(model: Any, tokenizer: Any) -> None:
    """What fine-tuning is measured against: the base, asked in a chat, answers nothing."""
    problems = list(Arithmetic(rows="problem", n=50, steps=[1, 2, 3], split="dev").generate(11))
    chats = [[{"role": "user", "content": p.messages[0].content}] for p in problems if isinstance(p, Problem)]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = model.generate(**batch, do_sample=False, max_new_tokens=60)[:, batch.input_ids.shape[1] :]
    right = [f"\\boxed{{{p.gold}}}" in text for p, text in zip(problems, tokenizer.batch_decode(ids), strict=True)]  # type: ignore[union-attr]
    assert sum(right) / 50 < 0.2

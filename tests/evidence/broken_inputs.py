"""Recipes with one thing wrong, and the same recipes with nothing wrong, each made in a folder of its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file, save_file

from qwen_align.align.rendering.tiny_tokenizer import save_tokenizer, train_tokenizer
from qwen_align.align.rows import Chat, Message, Pair, Problem, Row, to_json_line
from qwen_align.data_builders.arithmetic import Arithmetic, box_answer

BASE = Path(__file__).parents[2] / "recipes" / "tiny_base"
SFT: dict[str, Any] = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["rows"],
    "max_tokens": 256,
    "batch": 4,
    "epochs": 1,
    "learning_rate": 1e-3,
}
GRPO: dict[str, Any] = {
    "name": "grpo",
    "kind": "grpo",
    "from_model": "base",
    "from_data": ["rows"],
    "rewards": [{"kind": "math_answer"}],
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 2,
    "sampling": {"temperature": 1.0, "max_tokens": 16},
    "learning_rate": 1e-3,
}


def sound_sft(folder: Path) -> Path:
    return _recipe(folder, _rows(folder, *_chats()), SFT)


def sound_grpo(folder: Path) -> Path:
    return _recipe(folder, _rows(folder, *_problems()), GRPO)


def sound_lora_then_dpo(folder: Path) -> Path:
    """A base, an adapter trained on it, and DPO of the whole model from there."""
    pairs = []
    for row in Arithmetic(rows="trace", n=8, steps=[2]).generate(7):
        assert row.row == "trace"
        sides = [box_answer(row.gold), box_answer(str(int(row.gold) + 1))]
        chosen, rejected = (Message(role="assistant", content=said, thinking=row.thinking) for said in sides)
        pairs.append(Pair(id=row.id, messages=row.messages, chosen=chosen, rejected=rejected, mode="think"))
    sft = {**SFT, "lora": {"rank": 4, "alpha": 8}, "learning_rate": 1e-2}
    dpo = {**SFT, "name": "dpo", "kind": "dpo", "from_model": "sft", "from_data": ["pairs"], "beta": 0.1}
    return _recipe(folder, _rows(folder, *_chats()), _rows(folder, *pairs, name="pairs"), sft, dpo)


def tokenizer_of_another_model(folder: Path) -> Path:
    """A tokenizer with more tokens than the model has embeddings, as after copying a larger family's."""
    words = [
        " ".join(f"{first}{second}{third}" for third in "bcdfgklmnp") for first in "bcdfgklmnp" for second in "aeiou"
    ]
    model = _model(folder)
    save_tokenizer(train_tokenizer(words * 4, vocab_size=1200), model, max_tokens=256)
    return _recipe(folder, _rows(folder, *_chats()), SFT)


def template_without_newline(folder: Path) -> Path:
    template = _model(folder) / "chat_template.jinja"
    said = template.read_text()
    prompt = said.rindex(r"<|im_start|>assistant\n")
    template.write_text(said[:prompt] + said[prompt:].replace(r"<|im_start|>assistant\n", "<|im_start|>assistant", 1))
    return _recipe(folder, _rows(folder, *_chats()), SFT)


def model_without_tokenizer(folder: Path) -> Path:
    (_model(folder) / "tokenizer.json").unlink()
    return _recipe(folder, _rows(folder, *_chats()), SFT)


def weights_under_other_names(folder: Path) -> Path:
    """Weights as torch.compile names them, none of which a model has."""
    path = _model(folder) / "model.safetensors"
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return _recipe(folder, _rows(folder, *_chats()), SFT)


def adapter_beside_the_model(folder: Path) -> Path:
    (_model(folder) / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
    return _recipe(folder, _rows(folder, *_chats()), SFT)


def misspelt_target_module(folder: Path) -> Path:
    lora = {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_porj"]}
    return _recipe(folder, _rows(folder, *_chats()), {**SFT, "lora": lora})


def question_and_gold_exchanged(folder: Path) -> Path:
    rows = [{"prompt": row.gold, "gold": row.messages[0].content} for row in _problems()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    builder = {"kind": "local_file", "path": "rows.jsonl", "rows": "problem"}
    return _recipe(folder, {"name": "rows", "kind": "build_data", "builder": builder}, GRPO)


def rendered_beforehand(folder: Path) -> Path:
    """Chats whose turns hold the template's own marks, as after rendering them once already."""
    rendered = []
    for chat in _chats():
        turns = [one.model_copy(update={"content": f"<|im_start|>{one.content}<|im_end|>"}) for one in chat.messages]
        rendered.append(chat.model_copy(update={"messages": turns}))
    return _recipe(folder, _rows(folder, *rendered), SFT)


INPUTS: dict[str, Callable[[Path], Path]] = {
    one.__name__: one
    for one in (
        sound_sft,
        sound_grpo,
        sound_lora_then_dpo,
        tokenizer_of_another_model,
        template_without_newline,
        model_without_tokenizer,
        weights_under_other_names,
        adapter_beside_the_model,
        misspelt_target_module,
        question_and_gold_exchanged,
        rendered_beforehand,
    )
}


def _chats() -> list[Chat]:
    return [
        Chat(
            id=f"c{number}",
            messages=[
                Message(role="user", content=f"{number} + {number} = ?"),
                Message(role="assistant", content=box_answer(str(2 * number))),
            ],
            mode="no_think",
        )
        for number in range(8)
    ]


def _problems() -> list[Problem]:
    return [
        Problem(
            id=f"p{number}",
            messages=[Message(role="user", content=f"What is the sum of {number} apples and three pears, if any?")],
            gold=str(number + 3),
            reward="math_answer",
        )
        for number in range(8)
    ]


def _rows(folder: Path, *rows: Row, name: str = "rows") -> dict[str, Any]:
    (folder / f"{name}.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))
    builder = {"kind": "local_file", "path": f"{name}.jsonl", "rows": "typed"}
    return {"name": name, "kind": "build_data", "builder": builder}


def _model(folder: Path) -> Path:
    """The model that `_recipe` names, to be broken."""
    model = folder / "model"
    if not model.exists():
        shutil.copytree(BASE, model)
    return model


def _recipe(folder: Path, *stages: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    recipe = {
        "name": "trial",
        "models": {"base": {"path": str(_model(folder))}},
        "runtime": {"device": "cpu", "threads": 1},
        "stages": list(stages),
    }
    path.write_text(yaml.safe_dump(recipe))
    return path

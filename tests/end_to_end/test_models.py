"""Model folders as users have them: what `check` refuses `run` refuses in the same words, before anything runs."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from qwen_align import load_model
from qwen_align.align.models.model_description import locate_model_files
from qwen_align.align.store.files import read_json, write_json

TRACES: dict[str, Any] = {
    "name": "traces",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "trace", "n": 8, "steps": [1]},
}
PROBLEMS: dict[str, Any] = {**TRACES, "name": "problems", "builder": {**TRACES["builder"], "rows": "problem"}}
SFT: dict[str, Any] = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["traces"],
    "max_tokens": 128,
    "batch": 4,
    "epochs": 1,
    "learning_rate": 1e-2,
}
LORA = {"rank": 2, "alpha": 4}
GRPO: dict[str, Any] = {
    "name": "grpo",
    "kind": "grpo",
    "from_model": "sft",
    "from_data": ["problems"],
    "rewards": [{"kind": "random"}],
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 4,
    "sampling": {"temperature": 1.0, "max_tokens": 8},
    "learning_rate": 1e-2,
    "lora": LORA,
}
CPU = {"device": "cpu", "threads": 1}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, whose head is its embeddings."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def write(write_recipe: Callable[..., Path], folder: Path) -> Callable[..., Path]:
    """`write(stage, ..., adapter="ignore")`: a recipe of these stages on the model in `folder`."""

    def of(*stages: dict[str, Any], **source: Any) -> Path:
        return write_recipe(list(stages), models={"base": {"path": str(folder), **source}}, runtime=CPU)

    return of


def add_adapter(folder: Path) -> None:
    """An adapter that changes the logits much, beside the model."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)


def drop_weights(folder: Path) -> None:
    add_adapter(folder)
    (folder / "model.safetensors").unlink()


def compile_names(folder: Path) -> None:
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def quantise(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "quantization_config": {"quant_method": "bitsandbytes"}})


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (compile_names, "lack 24 of the 24 tensors of a qwen3 model"),
    (cut_weights, "model.safetensors: is cut short"),
    (quantise, "the weights are quantised (bitsandbytes)"),
    (add_adapter, "lies beside the whole model; move it away, merge it into the model, or set `adapter: ignore`"),
    (drop_weights, "holds an adapter (adapter_config.json) and no model; its base is "),
]


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_model_that_is_not_whole_is_refused_before_anything_runs(
    folder: Path,
    write: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
    command: str,
    change: Callable[[Path], None],
    message: str,
) -> None:
    change(folder)
    said = cli(command, write(TRACES, SFT))
    assert said.code == 2
    assert "models: base: " in said.err
    assert message in said.err
    assert not list(tmp_path.glob("store/*-*"))


TARGETS: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ["q_proj", "v_porj"]}, "'v_porj' is no layer of a qwen3 model. Did you mean 'v_proj'?"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens shares its weights with another layer"),
    ({"target_modules": ["lm_head"]}, "lm_head shares its weights with another layer"),
    ({"target_modules": ["self_attn"]}, "self_attn is no layer that LoRA can adapt in a qwen3 model; those are down"),
    ({"target_modules": ["layers.7.self_attn.q_proj"]}, "'layers.7.self_attn.q_proj' is no layer of a qwen3 model"),
    ({"target_modules": []}, "lora.target_modules: is empty"),
]


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(("lora", "message"), TARGETS)
def test_target_modules_that_are_not_there_are_refused_before_anything_runs(
    write: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
    command: str,
    lora: dict[str, Any],
    message: str,
) -> None:
    # The later of two stages: it is traced back to the model that the first starts from.
    said = cli(command, write(TRACES, SFT, {**SFT, "name": "second", "from_model": "sft", "lora": {**LORA, **lora}}))
    assert said.code == 2
    assert f"stage 'second': lora.target_modules: {message.removeprefix('lora.target_modules: ')}" in said.err
    assert not list(tmp_path.glob("store/*-*"))


def test_tensors_that_are_not_read_are_named_once(
    folder: Path, write: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for layer in range(2)}
    save_file(load_file(folder / "model.safetensors") | buffers, folder / "model.safetensors", {"format": "pt"})
    said = cli("check", write(TRACES, SFT, {**SFT, "name": "second"}))
    assert said.code == 0
    assert said.out.count("note: models: base: ") == 1
    assert "2 tensors in its weights that are no part of a qwen3 model" in said.out


def test_a_whole_model_is_checked_without_a_note(write: Callable[..., Path], cli: Callable[..., Any]) -> None:
    said = cli("check", write(TRACES, {**SFT, "lora": {**LORA, "target_modules": ["q_proj", "layers.1.mlp.up_proj"]}}))
    assert said.code == 0
    assert "note" not in said.out


@pytest.mark.slow(seconds=8)
def test_a_model_beside_an_ignored_adapter_is_trained_and_handed_on_without_it(
    folder: Path, tiny_model: Path, write: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    add_adapter(folder)
    assert "not read: " not in cli("check", write(TRACES, SFT, adapter="ignore")).out
    sampling = {"temperature": 0.7, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, **sampling}))
    # TRL loads a reference of its own, by the folder's name.
    by_trl = {**GRPO, "from_model": "base", "trainer": "trl", "kl": {"coefficient": 0.1}, "lora": None}
    said = cli("run", write(TRACES, PROBLEMS, SFT, by_trl, adapter="ignore"))
    assert said.code == 0, said.err
    assert "generation_config.json: sets temperature, top_p without do_sample: true" in said.out
    made = tmp_path / "runs/trial/stages/sft/model"
    assert {path.name for path in made.iterdir() if "adapter" in path.name} == set()
    assert len({stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}) == 1
    assert sampling.items() <= read_json(made / "generation_config.json").items()
    trained, start = load_file(made / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert trained.keys() == start.keys()
    # One step of AdamW moves a weight by the learning rate at most: it started from the model, not from the adapter's.
    steps = max(float(np.abs(trained[name] - start[name]).max()) for name in start)
    assert 1e-3 < steps < 3 * SFT["learning_rate"]


@pytest.mark.slow(seconds=15)
def test_an_adapter_is_loaded_by_peft_only_where_that_gives_the_stages_model(
    write: Callable[..., Path], folder: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    said = cli("run", write(TRACES, PROBLEMS, {**SFT, "lora": LORA}, GRPO))
    assert said.code == 0, said.err
    stages = tmp_path / "runs/trial/stages"
    ids = torch.arange(32).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    first = stages / "sft/adapter"
    assert read_json(first / "adapter_config.json")["base_model_name_or_path"] == str(folder)
    with torch.inference_mode():
        adapted = PeftModel.from_pretrained(base, first)(input_ids=ids).logits
        assert torch.allclose(adapted, load_model(stages / "sft")[0](input_ids=ids).logits, atol=1e-4)
    second = stages / "grpo/adapter"
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config.json'"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), second)
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(second)
    assert "trained on top of another adapter" in (second / "README.md").read_text()
    for made in (first, second):
        assert str(tmp_path) not in (made / "README.md").read_text()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
        assert len(modes) == 1
    # The stage's own model is base, first and second adapter in that order.
    below = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), first).merge_and_unload()
    copied = shutil.copytree(second, tmp_path / "by_hand")
    (copied / "stacked_adapter_config.json").rename(copied / "adapter_config.json")
    with torch.inference_mode():
        by_hand = PeftModel.from_pretrained(below, copied)(input_ids=ids).logits
        merged = load_model(stages / "grpo")[0](input_ids=ids).logits
    assert torch.allclose(by_hand, merged, atol=1e-4)
    assert len(locate_model_files(stages / "grpo").adapters) == 2


MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}


def make_mixture(kind: str, folder: Path) -> None:
    """A mixture of experts with the tiny model's tokenizer in its place."""
    config = read_json(folder / "config.json")
    kept = {name: config[name] for name in config if name not in ("architectures", "model_type")}
    fields = {name: MIXTURE[name] for name in MIXTURE if kind == "qwen2_moe" or not name.startswith("shared")}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **kept, **fields)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "lora", "message"),
    [
        ("qwen3_moe", {"target_modules": ["gate_proj", "q_proj"]}, "have gate_proj and up_proj in one tensor"),
        ("qwen3_moe", {"dropout": 0.1}, "lora.dropout: PEFT has no dropout on the experts of a mixture"),
        ("qwen2_moe", {"target_modules": ["gate"]}, "gate is no layer that LoRA can adapt in a qwen2_moe model"),
    ],
)
def test_what_peft_cannot_adapt_in_a_mixture_is_refused(
    folder: Path, write: Callable[..., Path], cli: Callable[..., Any], kind: str, lora: dict[str, Any], message: str
) -> None:
    make_mixture(kind, folder)
    said = cli("check", write(TRACES, {**SFT, "lora": {**LORA, **lora}}))
    assert said.code == 2
    assert message in said.err
    assert "lora: all-linear: attention and " in cli("check", write(TRACES, {**SFT, "lora": LORA})).out


@pytest.mark.slow(seconds=5)
def test_what_is_not_checked_before_a_run_is_said(
    folder: Path, write: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "model_type": "olmo2"})
    said = cli("check", write(TRACES, {**SFT, "lora": {**LORA, "target_modules": ["q_proj"]}}))
    assert said.code == 0
    assert "names and shapes of a olmo2 model's weights are not checked here; loading does" in said.out
    assert "note: stage 'sft': lora.target_modules are not checked here" in said.out
    said = cli("run", write(TRACES, SFT))
    assert said.code == 2
    assert "its weights lack 4 of the model's tensors, which would be made up at random" in said.err


# --- heads


def add_score_head(folder: Path, rows: int, width: int = 16) -> None:
    """Makes a scorer of a model's folder, with the head that its trunk gets."""
    tensors = load_file(folder / "model.safetensors")
    head = np.ones((rows, width), np.float32)
    save_file({**tensors, "score.weight": head}, folder / "model.safetensors", {"format": "pt"})
    config = {**read_json(folder / "config.json"), "architectures": ["Qwen3ForSequenceClassification"]}
    write_json(folder / "config.json", {**config, "id2label": {str(row): f"L{row}" for row in range(rows)}})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (1, None),
        (3, "models: judge: {folder}: gives 3 numbers; a scorer gives one (num_labels: 1)"),
        (0, "score.weight; a reward model in Hugging Face form has a linear head of this name"),
    ],
)
def test_a_scorer_has_its_head_in_its_file(
    folder: Path, tiny_model: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any], rows: int, message: str
) -> None:
    if rows:
        add_score_head(folder, rows)
    models = {"base": {"path": str(tiny_model)}, "judge": {"path": str(folder), "is_scorer": True}}
    rewards = [{"kind": "learned", "from_scorer": "judge"}]
    stages = [PROBLEMS, {**GRPO, "from_model": "base", "rewards": rewards}]
    said = cli("check", write_recipe(stages, models=models, runtime=CPU))
    assert said.code == (2 if message else 0), said.err
    assert not message or message.format(folder=folder) in said.err


@pytest.mark.parametrize("is_other", [False, True])
def test_a_critic_starts_as_a_reward_model_that_reads_the_policys_token_ids(
    folder: Path, tiny_model: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any], is_other: bool
) -> None:
    add_score_head(folder, 1)
    if is_other:  # two tokens have each other's ids: no id is out of range, and every text with them reads otherwise
        tokenizer = read_json(folder / "tokenizer.json")
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        write_json(folder / "tokenizer.json", tokenizer)
    models = {"base": {"path": str(tiny_model)}, "judge": {"path": str(folder), "is_scorer": True}}
    policy = {name: value for name, value in GRPO.items() if name != "lora"} | {"from_model": "base", "kind": "ppo"}
    critic = {"learning_rate": 1e-3, "from_scorer": "judge"}
    said = cli("check", write_recipe([PROBLEMS, {**policy, "critic": critic}], models=models, runtime=CPU))
    assert said.code == (2 if is_other else 0), said.err
    assert not is_other or "critic.from_scorer: its tokenizer is not the policy's" in said.err
    assert not is_other or "'a' is id " in said.err


def test_a_model_without_its_head_is_good_for_a_reward_model_alone(
    folder: Path, write: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "tie_word_embeddings": False})
    pair = {"messages": [{"role": "user", "content": "1+1?"}], "chosen": {"role": "assistant", "content": "2"}}
    row = {"row": "pair", "id": "a", **pair, "rejected": {"role": "assistant", "content": "3"}, "mode": "no_think"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    pairs = {**TRACES, "name": "pairs", "builder": {"kind": "local_file", "path": "pairs.jsonl", "rows": "typed"}}
    judge = {**SFT, "name": "judge", "kind": "reward_model", "from_data": ["pairs"], "batch": 1}
    assert cli("check", write(pairs, judge)).code == 0
    said = cli("check", write(pairs, judge, TRACES, SFT))
    assert said.code == 2
    assert "lack 1 of the 25 tensors" in said.err
    assert (
        "lm_head.weight; where the head is the embeddings, config.json has to say tie_word_embeddings: true" in said.err
    )

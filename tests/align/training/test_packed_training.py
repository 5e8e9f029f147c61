"""sft, dpo and reward_model on packed micro-batches against plain TRL, which pads the whole batch in one pass."""

from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from qwen_align.align.context import Context
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import reward_model, sft
from qwen_align.align.training import fit, token_scores
from qwen_align.align.training.preference_losses import PREFERENCE_LOSSES
from qwen_align.align.training.preference_trainer import PreferenceTrainer

pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY, N_ROWS, PAD = 509, 6, 60
WHOLE = Runtime(device="cpu", micro_batch=64)
SMALL = Runtime(device="cpu", micro_batch_tokens=50)  # passes of one to three rows or pairs
ALONE = Runtime(device="cpu", micro_batch=1)  # a row without a token in the loss among them
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}


def make_model(*, is_tied: bool = True, seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=128,
            tie_word_embeddings=is_tied,
            initializer_range=0.3,  # so that attention tells rows apart
            pad_token_id=PAD,
        )
    )


def make_mixture(kind: str, *, seed: int = 0) -> PreTrainedModel:
    """A mixture of experts: of kind qwen2_moe with a shared expert."""
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    sizes = {name: getattr(make_model().config, name) for name in (*kept, "initializer_range", "pad_token_id")}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    shared = {"shared_expert_intermediate_size": 12} if kind == "qwen2_moe" else {}
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **experts, **shared))
    return model


def make_base(case: "Case", *, seed: int = 0) -> PreTrainedModel:
    if case.base == "qwen3":
        return make_model(is_tied=case.is_tied, seed=seed)
    return make_mixture(case.base, seed=seed)


def make_scorer(causal: PreTrainedModel) -> PreTrainedModel:
    causal.config.num_labels = 1
    scorer = AutoModelForSequenceClassification.from_config(causal.config)
    scorer.model = causal.model
    return scorer


def draw_ids(n: int, random: torch.Generator) -> list[int]:
    return torch.randint(0, PAD, (n,), generator=random).tolist()


def make_samples() -> datasets.Dataset:
    """Rows of unlike lengths, some with two turns in the loss, one with nothing in it."""
    random = torch.Generator().manual_seed(1)
    rows = []
    for n in (5, 31, 12, 7, 22, 9):
        ids = draw_ids(n, random)
        in_loss = [(n == 12 and position < 6) or (n != 9 and position > n // 2) for position in range(n)]
        rows.append(
            {"input_ids": ids, "labels": [token if kept else -100 for token, kept in zip(ids, in_loss, strict=True)]}
        )
    return datasets.Dataset.from_list(rows)


def make_pairs() -> datasets.Dataset:
    """Pairs whose sides begin with the same tokens here and there, and in one of which one side begins the other."""
    random = torch.Generator().manual_seed(2)
    rows = []
    for n_prompt, n_common, n_chosen, n_rejected in (
        (9, 0, 4, 7),
        (3, 2, 11, 1),
        (17, 0, 1, 1),
        (1, 0, 6, 3),
        (6, 4, 3, 0),
        (4, 1, 2, 9),
    ):
        common = draw_ids(n_common, random)
        chosen, rejected = draw_ids(n_chosen, random), draw_ids(n_rejected, random)
        row = {"prompt_ids": draw_ids(n_prompt, random), "chosen_ids": common + chosen}
        rows.append(row | {"rejected_ids": common + rejected, "margin": 0.5})
    return datasets.Dataset.from_list(rows)


def join_prompts(pairs: datasets.Dataset) -> datasets.Dataset:
    joined = [
        {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")} | {"margin": row["margin"]}
        for row in pairs
    ]
    return datasets.Dataset.from_list(joined)


class PlainDpo(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on token ids."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class Step(NamedTuple):
    loss: float
    gradients: dict[str, Tensor]
    metrics: dict[str, float]


def collect(trainer: Any, loss: Tensor) -> Step:
    gradients = {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
    return Step(loss.item(), gradients, metrics)


def run_packed(trainer: Any) -> Step:
    trainer.optimizer = None
    (rows,) = list(trainer.get_train_dataloader())
    return collect(trainer, trainer.training_step(trainer.model, rows))


def run_plain(trainer: Any) -> Step:
    """All rows in one padded forward pass, as TRL alone computes it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator(list(trainer.train_dataset))
    n_items = (batch["labels"][:, 1:] != -100).sum() if "labels" in batch else None
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=n_items)
    loss.backward()
    return collect(trainer, loss.detach())


class Case(NamedTuple):
    """A trainer's model and loss."""

    kind: str
    attention: str = "sdpa"
    lora: dict[str, Any] | None = None
    is_tied: bool = True
    loss: str = "sigmoid"
    sft_weight: float = 0.0
    base: str = "qwen3"

    def __str__(self) -> str:
        changed = [f"{name} {value}" for name, value in self._asdict().items() if value != Case("")._asdict()[name]]
        return ", ".join(changed)


def build(case: Case, folder: Path, tokenizer: Any, *, is_packed: bool = True) -> Any:
    """A trainer of ours or TRL's, of the same weights on the same rows."""
    kind, attention, lora = case.kind, case.attention, case.lora
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": N_ROWS,
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "max_length": None,
        "gradient_checkpointing": False,
    }
    made: dict[str, Any] = {"processing_class": tokenizer}
    model = make_base(case)
    model = make_scorer(model) if kind == "reward_model" else model
    if lora is not None:
        made["peft_config"] = LoraConfig(task_type="SEQ_CLS" if kind == "reward_model" else "CAUSAL_LM", **lora)
    if is_packed:
        set_attention(model, attention, "cpu")  # type: ignore[arg-type]
    else:
        model.set_attn_implementation(attention)
    if kind == "sft":
        trainer_class: Any = sft.Trainer if is_packed else SFTTrainer
        made |= {"args": SFTConfig(**arguments, router_aux_loss_coef=0.0), "train_dataset": make_samples()}
    elif kind == "reward_model":
        trainer_class = reward_model.Trainer if is_packed else RewardTrainer
        made |= {"args": RewardConfig(**arguments, center_rewards_coefficient=0.1)}
        made |= {"train_dataset": join_prompts(make_pairs())}
    else:
        trainer_class = PreferenceTrainer if is_packed else PlainDpo
        types: dict[str, Any] = {"loss_type": [case.loss]}
        if case.sft_weight and not is_packed:
            types = {"loss_type": [case.loss, "sft"], "loss_weights": [1.0, case.sft_weight]}
        smoothing = {"label_smoothing": 0.1} if case.loss == "robust" else {}
        made |= {
            "args": DPOConfig(**arguments, **types, **smoothing, router_aux_loss_coef=0.0),
            "train_dataset": make_pairs(),
        }
        made |= {"loss": PREFERENCE_LOSSES[case.loss], "sft_weight": case.sft_weight} if is_packed else {}
        if lora is None:
            reference = make_base(case, seed=3)
            set_attention(reference, attention, "cpu") if is_packed else reference.set_attn_implementation(attention)  # type: ignore[arg-type]
            made["ref_model"] = reference
    trainer = trainer_class(model=model, **made)
    trainer.context = Context(folder, 0, WHOLE)
    torch.manual_seed(5)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:  # which start at 0, where policy and reference are the same
            torch.nn.init.normal_(weight, std=0.3)
    return trainer


def require_equal(ours: Step, theirs: Step) -> None:
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        assert torch.allclose(ours.gradients[name], gradient, rtol=1e-5, atol=1e-5), name
    assert any(gradient.abs().max() > 1e-3 for gradient in theirs.gradients.values())
    assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-5)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    found = fit.load_padding_tokenizer(tiny_model)
    found.pad_token_id = PAD
    return found


CASES = [
    Case("sft"),
    Case("sft", attention="eager", is_tied=False),
    Case("sft", lora=LORA | {"modules_to_save": ["lm_head"]}, is_tied=False),
    Case("sft", lora=LORA),
    Case("dpo"),
    Case("dpo", attention="eager", is_tied=False),
    Case("dpo", lora=LORA, loss="ipo"),
    Case("dpo", loss="robust", sft_weight=0.7),
    Case("dpo", loss="hinge"),
    Case("dpo", loss="sigmoid_norm"),
    Case("reward_model"),
    Case("reward_model", attention="eager"),
    Case("sft", base="qwen2_moe"),
    Case("dpo", base="qwen3_moe"),
    Case("reward_model", base="qwen2_moe"),
    Case("reward_model", lora=LORA | {"modules_to_save": ["score"]}),
]
FAST = [Case("sft"), Case("dpo", loss="robust", sft_weight=0.7), Case("reward_model")]


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow(seconds=2)) for case in CASES], ids=str
)
def test_packed_micro_batches_equal_trls_padded_batch(case: Case, tmp_path: Path, tokenizer: Any) -> None:
    """However they are cut, and in what TRL logs of them too."""
    theirs = run_plain(build(case, tmp_path, tokenizer, is_packed=False))
    trainer = build(case, tmp_path, tokenizer)
    assert trainer.reads_packed
    for runtime in (WHOLE, SMALL, ALONE):
        trainer.context = Context(tmp_path, 0, runtime)
        trainer.model.zero_grad()
        require_equal(run_packed(trainer), theirs)
        trainer._metrics["train"].clear()


def count_common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with, when each keeps one of its own."""
    n = 0
    while n < min(len(one), len(other)) - 1 and one[n] == other[n]:
        n += 1
    return n


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward_model"])
def test_no_padding_is_computed_nor_a_common_beginning_twice(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    """What comes behind the last token from which one in the loss is predicted is not computed either."""
    trainer = build(Case(kind), tmp_path, tokenizer)
    seen: list[int] = []
    trainer.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    run_packed(trainer)
    if kind == "sft":
        last = [max((n for n, token in enumerate(row["labels"]) if token != -100), default=1) for row in make_samples()]
        assert seen == [sum(last)]
        return
    sides = [(row["chosen_ids"], row["rejected_ids"]) for row in join_prompts(make_pairs())]
    if kind == "dpo":
        sides = [(chosen[:-1], rejected[:-1]) for chosen, rejected in sides]
    n_common = [count_common(chosen, rejected) for chosen, rejected in sides]
    assert sum(n_common) > 20
    assert seen == [sum(len(chosen) + len(rejected) for chosen, rejected in sides) - sum(n_common)]


class LargestTensor(TorchDispatchMode):
    """How many elements the largest tensor has that is made."""

    n_elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else [made]:
            if isinstance(one, Tensor):
                self.n_elements = max(self.n_elements, one.numel())
        return made


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_logits_of_a_micro_batch_are_never_in_memory(
    kind: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a tile of them is, of five tokens here, and with a frozen head as with one that is trained."""
    monkeypatch.setattr(token_scores, "TILE", 5 * VOCABULARY)
    n_logits = {"sft": 44, "dpo": 54}[kind] * VOCABULARY
    for lora in (None, LORA):
        trainer = build(Case(kind, lora=lora), tmp_path, tokenizer)
        with LargestTensor() as largest:
            run_packed(trainer)
        assert 5 * VOCABULARY <= largest.n_elements < n_logits / 2

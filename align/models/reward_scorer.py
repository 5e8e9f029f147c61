"""Loads reward model scorers, computes their scores of completions and binds them to rewards.

A scorer is a model that gives a completion one number at its last token. On disk a scorer is a sequence classifier with
one label in Hugging Face form, or an adapter with its head.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.models.adapters import load_adapter, merge_and_unload
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.fp32_head import Fp32Linear
from qwen_align.align.models.model_description import ModelFiles, locate_model_files
from qwen_align.align.models.weight_headers import read_stored_tensors
from qwen_align.align.models.weight_precision import Precision
from qwen_align.align.models.weight_shards import build_without_zero3
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Completion
from qwen_align.align.settings.runtime import Runtime
from qwen_align.reward.reward_model_score import Learned
from qwen_align.reward.settings import Reward


class Scorer:
    """A reward model that gives each completion a score.

    The score is the same alone and in any batch, but for float rounding.
    """

    def __init__(self, trunk: PreTrainedModel, renderer: Renderer, *, max_rows: int) -> None:
        self.model, self.renderer, self.max_rows = trunk.eval(), renderer, max_rows

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Returns the reward model's score of each completion."""
        return self.score_token_ids([self.renderer.encode_for_scoring(completion) for completion in completions])

    @torch.no_grad()
    def score_token_ids(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Returns the reward model's score of each row of token ids.

        A row ends with the end-of-turn token.
        """
        scores: dict[int, float] = {}
        ordered = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(ordered), self.max_rows):
            batch = ordered[start : start + self.max_rows]
            ids = [torch.tensor(rows[row], device=self.model.device) for row in batch]
            lengths = torch.tensor([len(row_ids) for row_ids in ids], device=self.model.device)
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.renderer.pad_id)
            hidden = self.model.base_model(input_ids=padded, use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(batch), device=hidden.device), lengths - 1]
            batch_scores: Tensor = self.model.score(last)[:, 0]
            scores |= dict(zip(batch, batch_scores.float().tolist(), strict=True))
        return [scores[row] for row in range(len(rows))]


def build_scorer_model(causal: PreTrainedModel, pad_id: int) -> PreTrainedModel:
    """Builds an untrained reward model from a causal language model, whose trunk it takes as it is.

    Its new head is fp32 and scores everything 0.
    """
    causal.config.pad_token_id = pad_id
    scorer: Any = _put_score_head(causal)
    torch.nn.init.zeros_(scorer.score.weight)
    assert isinstance(scorer, PreTrainedModel)
    return scorer


def load_scorer_model(
    folder: Path, precision: Precision | Literal["auto"] = "auto", *, mesh: DeviceMesh | None = None
) -> PreTrainedModel:
    """Loads a reward model from a stage's folder or a Hugging Face folder, on the CPU; its head is fp32.

    auto: the trunk is in the precision of its files. `mesh`: the processes that each load a shard of the trunk.
    """
    files = locate_model_files(folder)
    held = loading.find_precision(folder) if precision == "auto" else precision
    if not files.adapters:
        base = loading.fetch_base_folder(files)
        model: Any = _require_one_label(loading.load_base_model(base, "score", held, mesh=mesh), folder)
        head = Fp32Linear(model.score.in_features, 1, bias=model.score.bias is not None)
        head.load_state_dict({name: _read_tensor(base, f"score.{name}") for name in model.score.state_dict()})
        model.score = head
        assert isinstance(model, PreTrainedModel)
        return model
    *earlier, own = files.adapters
    causal = loading.load_with_adapters(ModelFiles(files.base, earlier), held, needs_head=False, mesh=mesh)
    return _require_one_label(merge_and_unload(load_adapter(_put_score_head(causal), own)), folder)


def _read_tensor(folder: Path, name: str) -> Tensor:
    """Reads one tensor of a model folder as its file has it."""
    with safe_open(folder / read_stored_tensors(folder)[name].file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _put_score_head(causal: PreTrainedModel) -> PreTrainedModel:
    """Returns a sequence classifier with one label that has the trunk of a causal language model and a new fp32 head.

    The classifier is built without weights: a second trunk would be thrown away.
    """
    causal.config.num_labels = 1
    with build_without_zero3(), torch.device("meta"):
        scorer: Any = AutoModelForSequenceClassification.from_config(causal.config, dtype=torch.float32)
    setattr(scorer, scorer.base_model_prefix, causal.base_model)
    scorer.score = Fp32Linear(scorer.score.in_features, 1, bias=scorer.score.bias is not None)
    assert isinstance(scorer, PreTrainedModel)
    return scorer


def _require_one_label(model: Any, folder: Path) -> PreTrainedModel:
    """Checks that a reward model outputs a single number and returns it.

    Raises RecipeError otherwise.
    """
    if model.config.num_labels != 1:
        raise RecipeError(f"{folder}: gives {model.config.num_labels} numbers; a scorer gives one (num_labels: 1)")
    assert isinstance(model, PreTrainedModel)
    return model


def load_scorer(folder: Path, runtime: Runtime) -> Scorer:
    """Loads the reward model of a stage's folder or of a model folder as a scorer, as the runtime says.

    Raises RecipeError for an attention implementation that its architecture does not have.
    """
    device = loading.choose_device(runtime)
    trunk: Any = load_scorer_model(folder).to(device)
    set_attention(trunk, runtime.attention, device.type)
    return Scorer(trunk.requires_grad_(False), loading.load_renderer(folder), max_rows=runtime.micro_batch)


def bind_scorers(rewards: Iterable[Reward], inputs: Mapping[str, Path], runtime: Runtime) -> None:
    """Loads each reward model that learned rewards name, once, and binds it to these rewards."""
    scorers: dict[str, Scorer] = {}
    for reward in rewards:
        if isinstance(reward, Learned):
            name = str(reward.from_scorer)
            if name not in scorers:
                scorers[name] = load_scorer(inputs[name], runtime)
            reward.bind_scorer(scorers[name])

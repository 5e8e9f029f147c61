"""Loads reward model scorers, computes their scores of completions and binds them to rewards.

A scorer is a model that gives a completion one number at its last token. On disk a scorer is a sequence classifier with
one label in Hugging Face form, or an adapter with its head.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.models.adapters import load_adapter
from qwen_align.align.models.model_description import ModelFiles, locate_model_files
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Completion
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


def build_scorer_model(source: Path, pad_id: int) -> PreTrainedModel:
    """Builds an untrained reward model from a causal language model, in fp32.

    Its new head scores everything 0.
    """
    return put_scorer_head(loading.load_model(source, needs_head=False), pad_id)


def put_scorer_head(causal: PreTrainedModel, pad_id: int) -> PreTrainedModel:
    """Builds an untrained reward model on the trunk of a causal language model, which may be quantised.

    Its new head, in fp32, scores everything 0.
    """
    config = causal.config
    config.num_labels, config.pad_token_id = 1, pad_id
    scorer: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(scorer, scorer.base_model_prefix, causal.base_model)
    torch.nn.init.zeros_(scorer.score.weight)
    assert isinstance(scorer, PreTrainedModel)
    return scorer


def load_scorer_model(folder: Path) -> PreTrainedModel:
    """Loads a reward model from a stage's folder or a Hugging Face folder, in fp32 on the CPU."""
    files = locate_model_files(folder)
    if not files.adapters:
        return _require_one_label(loading.load_base_model(loading.fetch_base_folder(files), head="score"), folder)
    *earlier, own = files.adapters
    causal = loading.load_with_adapters(ModelFiles(files.base, earlier), needs_head=False)
    config = causal.config
    config.num_labels = 1
    scorer: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(scorer, scorer.base_model_prefix, causal.base_model)
    return _require_one_label(load_adapter(scorer, own).merge_and_unload(), folder)


def _require_one_label(model: Any, folder: Path) -> PreTrainedModel:
    """Checks that a reward model outputs a single number and returns it.

    Raises RecipeError otherwise.
    """
    if model.config.num_labels != 1:
        raise RecipeError(f"{folder}: gives {model.config.num_labels} numbers; a scorer gives one (num_labels: 1)")
    assert isinstance(model, PreTrainedModel)
    return model


def load_scorer(folder: Path, *, device: torch.device, max_rows: int) -> Scorer:
    """Loads the reward model of a stage's folder or of a model folder as a scorer, on the given device."""
    trunk: Any = load_scorer_model(folder).to(device)
    return Scorer(trunk.requires_grad_(False), loading.load_renderer(folder), max_rows=max_rows)


def bind_scorers(rewards: Iterable[Reward], inputs: Mapping[str, Path], *, device: torch.device, max_rows: int) -> None:
    """Loads each reward model that learned rewards name, once, and binds it to these rewards."""
    scorers: dict[str, Scorer] = {}
    for reward in rewards:
        if isinstance(reward, Learned):
            name = str(reward.from_scorer)
            if name not in scorers:
                scorers[name] = load_scorer(inputs[name], device=device, max_rows=max_rows)
            reward.bind_scorer(scorers[name])

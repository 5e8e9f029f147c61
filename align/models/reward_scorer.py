"""Scorers: a trunk with one number at the last token; made by `reward_model`, bound to learned rewards.

On disk a scorer is a sequence classifier with one label in Hugging Face form, or an adapter with its head.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Completion
from qwen_align.reward.reward_model_score import Learned
from qwen_align.reward.settings import Reward


class Scorer:
    """Scores completions; the same number alone and in any batch, but for float rounding."""

    def __init__(self, trunk: PreTrainedModel, renderer: Renderer, *, max_rows: int) -> None:
        self.model, self.renderer, self.max_rows = trunk.eval(), renderer, max_rows

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        return self.of_ids([self.renderer.whole(one) for one in completions])

    @torch.no_grad()
    def of_ids(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The score of each row of token ids, which ends with the end of a turn."""
        scores: dict[int, float] = {}
        ordered = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(ordered), self.max_rows):
            part = ordered[start : start + self.max_rows]
            ids = [torch.tensor(rows[row], device=self.model.device) for row in part]
            lengths = torch.tensor([len(one) for one in ids], device=self.model.device)
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.renderer.pad_id)
            hidden = self.model.base_model(input_ids=padded, use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(part), device=hidden.device), lengths - 1]
            found: Tensor = self.model.score(last)[:, 0]
            scores |= dict(zip(part, found.float().tolist(), strict=True))
        return [scores[row] for row in range(len(rows))]


def classifier(source: Path, pad_id: int) -> PreTrainedModel:
    """The model of a stage or folder with a new head that says 0 of everything, in fp32."""
    causal = loading.load(source)
    config = causal.config
    config.num_labels, config.pad_token_id = 1, pad_id
    made: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(made, made.base_model_prefix, causal.base_model)
    torch.nn.init.zeros_(made.score.weight)
    assert isinstance(made, PreTrainedModel)
    return made


def load(folder: Path) -> PreTrainedModel:
    """The scorer of a stage's folder, or of a folder in Hugging Face form, in fp32 on the CPU."""
    files = loading.locate(folder)
    if not files.adapters:
        try:
            return _checked(
                AutoModelForSequenceClassification.from_pretrained(
                    str(loading.base_folder(files)), dtype=torch.float32, use_safetensors=True
                ),
                folder,
            )
        except OSError as error:
            raise RecipeError(f"{folder}: cannot be loaded as a scorer in safetensors form: {error}") from None
    from peft import PeftModel

    *earlier, own = files.adapters
    causal = loading.load_files(loading.ModelFiles(files.base, earlier))
    config = causal.config
    config.num_labels = 1
    made: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(made, made.base_model_prefix, causal.base_model)
    return _checked(PeftModel.from_pretrained(made, str(own)).merge_and_unload(), folder)


def _checked(found: Any, folder: Path) -> PreTrainedModel:
    if found.config.num_labels != 1:
        raise RecipeError(f"{folder}: gives {found.config.num_labels} numbers; a scorer gives one (num_labels: 1)")
    assert isinstance(found, PreTrainedModel)
    return found


def of(folder: Path, *, device: torch.device, max_rows: int) -> Scorer:
    """The scorer of a stage's folder or of a model folder, ready to score."""
    trunk: Any = load(folder).to(device)
    return Scorer(trunk.requires_grad_(False), loading.renderer_of(folder), max_rows=max_rows)


def bind(rewards: Iterable[Reward], inputs: Mapping[str, Path], *, device: torch.device, max_rows: int) -> None:
    """Loads the scorers that learned rewards name, each once, and binds them."""
    made: dict[str, Scorer] = {}
    for reward in rewards:
        if isinstance(reward, Learned):
            name = str(reward.from_scorer)
            if name not in made:
                made[name] = of(inputs[name], device=device, max_rows=max_rows)
            reward.bind_scorer(made[name])

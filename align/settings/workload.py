"""Defines a stage's workload: what its memory and time depend on, whatever its kind is called."""

from typing import Literal, NamedTuple

from qwen_align.align.settings.engine import EngineName
from qwen_align.align.settings.training import Lora


class ReadRows(NamedTuple):
    """Rows that are read to be trained on: `per_step` of them, each of `sides` texts of up to `max_tokens`."""

    max_tokens: int
    per_step: int
    epochs: float
    sides: int = 1


class DrawnRows(NamedTuple):
    """Completions that are drawn, of up to `max_tokens`.

    prompts_per_step, steps: 0 where each row that is read is a prompt, once.
    """

    completions_per_prompt: int
    max_tokens: int
    prompts_per_step: int = 0
    steps: int = 0
    engine: EngineName = "local"

    @property
    def per_step(self) -> int:
        """Returns the number of completions of a step."""
        return self.prompts_per_step * self.completions_per_prompt


class TrainingWork(NamedTuple):
    """How a model is trained.

    lora, optimizer, save_weights: as in the settings. passes, minibatches: training passes over the rows of a step, and
    optimiser steps of each. scoring_passes: passes over them without gradients.
    reference: who scores as the policy was at first. copy: a second model; base: the policy without its adapters, while
    its activations are kept; before: the policy itself, before it is trained.
    critic: a value model of its own, or a head on the policy. trains_scorer: a head with one output takes the place of
    the model's own. trains_entropy: the loss has a gradient of entropies. head_of_trl: TRL's trainer computes the head.
    can_checkpoint: activations may be computed again in the backward pass.
    """

    lora: Lora | None
    optimizer: str
    save_weights: Literal["auto", "fp32", "bf16"]
    passes: int = 1
    minibatches: int = 1
    scoring_passes: int = 0
    reference: Literal["copy", "base", "before"] | None = None
    critic: Literal["separate", "head"] | None = None
    trains_scorer: bool = False
    trains_entropy: bool = False
    head_of_trl: bool = False
    can_checkpoint: bool = True


class Workload(NamedTuple):
    """What a stage that loads a model works on. training: None where it only draws.

    needs_scorer: reward models are loaded too.
    """

    precision: Literal["auto", "fp32", "bf16"]
    rows: ReadRows | DrawnRows
    training: TrainingWork | None = None
    needs_scorer: bool = False

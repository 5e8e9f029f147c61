"""What a strategy divides among processes, as bytes that each of them holds: shards, and what is gathered to compute.

The formulas are those of the strategies' own papers and documentation (ZeRO: arXiv:1910.02054, section 5; torch's
`fully_shard`): a shard is a process's part of weights, gradients and moments; a layer is whole while it is computed.
"""

from typing import NamedTuple

from qwen_align.align.estimation.model_shape import ModelShape
from qwen_align.align.estimation.numerics import TrainedModel
from qwen_align.align.estimation.training_memory import Parts
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.strategy import REDUCED_NUMBERS, SHARDINGS, ZERO_STAGES, choose_strategy

GATHERED_LAYERS = 2  # one is computed while the next one is fetched
_FP32, _BF16 = 4, 2


class Spread(NamedTuple):
    """How a stage's runtime spreads a model that is trained over `n` processes.

    DeepSpeed keeps a shard of the fp32 weights beside the optimiser's state, the masters, also where the model's are
    fp32. Shards are gathered in the precision they are held in, and computed with under autocast.
    """

    runtime: Runtime
    model: TrainedModel
    n: int

    def divide(self, phase: str, parts: Parts) -> Parts:
        """Returns the bytes of a phase on each process, given those of a process that holds everything."""
        strategy = choose_strategy(self.runtime)
        if strategy == "ddp":
            return parts
        sharding, offload, n = SHARDINGS[strategy], self.runtime.offload, self.n
        divided = dict(parts)
        if strategy in ZERO_STAGES:
            divided["masters"] = float(_FP32 * self.model.trained)
        of_parameters = 1 / n if sharding.parameters else 1.0
        of_gradients = 1 / n if sharding.gradients else 1.0
        for part, share in {
            "weights": of_parameters if offload != "parameters" else 0.0,
            "adapters": of_parameters if offload != "parameters" else 0.0,
            "reference": of_parameters,
            "critic": (of_parameters + of_gradients) / 2,
            "gradients": of_gradients if offload == "none" else 0.0,
            "optimiser": 1 / n if offload == "none" else 0.0,
            "masters": 1 / n if offload == "none" else 0.0,
        }.items():
            if part in divided:
                divided[part] *= share
        if "copy" in divided:  # what is handed on is gathered a parameter at a time
            divided["copy"] = float(_FP32 * max(self.model.shape.embeddings, self.model.shape.largest_linear))
        if sharding.parameters and "casts" in divided:  # autocast keeps none: align/training/strategies.py
            divided["casts"] *= GATHERED_LAYERS / self.model.shape.n_layers
        if sharding.parameters and phase == "draw":
            divided["gathered"] = self._count_drawn_weights()
            divided["drawing copy"] = 0.0
        elif sharding.parameters and phase in ("score", "update"):
            divided["gathered"] = self._count_gathered_layers()
        if not sharding.parameters and phase == "update":
            reduced = min(REDUCED_NUMBERS, self.model.trained)
            divided["exchange"] = float(reduced * _FP32)
        return divided

    def _count_gathered_layers(self) -> float:
        """Returns the bytes of the weights that are whole for a moment: two layers, embeddings and head."""
        shape, model = self.model.shape, self.model
        linear = shape.linear * model.base_bytes * GATHERED_LAYERS / shape.n_layers
        return linear + float((shape.embeddings + shape.head) * model.other_bytes)

    def _count_drawn_weights(self) -> float:
        """Returns the bytes of the copy that completions are drawn with, in the precision that they are drawn in."""
        shape: ModelShape = self.model.shape
        drawn_bytes = _BF16 if self.model.autocast else self.model.other_bytes
        n_adapted = self.model.trained if self.model.lora else 0
        return float((shape.n_parameters + n_adapted) * drawn_bytes)

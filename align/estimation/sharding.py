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
    fp32. FSDP2 keeps fp32 shards and gathers them in bf16.
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
        if strategy == "fsdp2":
            divided["casts"] = 0.0  # weights are gathered in the precision that they are computed in
        if sharding.parameters and phase in ("draw", "score", "update", "save"):
            divided["gathered"] = self._count_gathered(whole=phase == "draw")
        if strategy in ("zero1", "zero2") and phase == "update":
            reduced = min(REDUCED_NUMBERS, self.model.trained)
            divided["exchange"] = float(reduced * _FP32)
        return divided

    def _count_gathered(self, *, whole: bool) -> float:
        """Returns the bytes of the weights that are whole for a moment: all to draw, else two layers and the ends."""
        shape: ModelShape = self.model.shape
        is_gathered_in_bf16 = self.model.autocast and choose_strategy(self.runtime) == "fsdp2" and not whole
        other_bytes = _BF16 if is_gathered_in_bf16 else self.model.other_bytes
        linear_bytes = other_bytes if self.model.lora is None else self.model.base_bytes
        ends = float((shape.embeddings + shape.head) * other_bytes)
        layers = shape.linear * linear_bytes
        return ends + (layers if whole else layers * GATHERED_LAYERS / shape.n_layers)

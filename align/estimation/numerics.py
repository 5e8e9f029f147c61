"""Says in which precision a stage holds and computes its weights, from its settings and the model's files."""

from typing import NamedTuple

from qwen_align.align.estimation.layer_tape import LayerNumerics
from qwen_align.align.estimation.model_shape import ModelShape, count_adapter_parameters, list_adapter_ranks
from qwen_align.align.settings.training import Lora

# Bytes of a weight in nf4 with double quantisation: 4 bits, one byte of scale for 64 weights and four for 256 of those
# (QLoRA, arXiv:2305.14314, section 3). bitsandbytes adds a table of 16 numbers to each layer, which is nothing.
NF4_BYTES = 0.5 + 1 / 64 + 4 / 64 / 256


class TrainedModel(NamedTuple):
    """A model as a stage that trains holds it. base_bytes: of a weight of a linear layer; other_bytes: of others.

    trained: number of trained parameters, which are fp32 as their gradients are. autocast: computed in bf16.
    maps_files, maps_linear: frozen weights in the files' precision are pages of the files, which the system can drop:
    all, or those of linear layers, which merged adapters make the process's own. So it is on a CPU.
    """

    shape: ModelShape
    lora: Lora | None
    base_bytes: float
    other_bytes: int
    autocast: bool
    trained: int
    maps_files: bool = False
    maps_linear: bool = False

    @property
    def weight_bytes(self) -> float:
        """Returns the bytes of all weights that are not mapped from files, without adapters."""
        shape = self.shape
        linear = shape.linear * self.base_bytes
        others = (shape.embeddings + shape.head + shape.others) * self.other_bytes
        is_linear_mapped = self.maps_files and self.maps_linear and self.base_bytes == shape.stored_bytes
        is_rest_mapped = self.maps_files and self.other_bytes == shape.stored_bytes
        return linear * (not is_linear_mapped) + others * (not is_rest_mapped)

    @property
    def is_quantised(self) -> bool:
        return self.base_bytes < 1

    @property
    def cast_bytes(self) -> float:
        """Returns the bytes of autocast's copies in bf16 of fp32 weights, which it keeps through a forward pass.

        Those of matrices alone: norms and embeddings are computed as they are. A head is multiplied in tiles.
        """
        if not self.autocast:
            return 0.0
        adapters = 2.0 * self.trained if self.lora else 0.0
        return adapters + (2.0 * self.shape.linear if self.base_bytes == 4 and self.lora is None else 0.0)

    def get_layer_numerics(self, *, is_on_gpu: bool) -> LayerNumerics:
        """Returns how a layer is computed while it is trained."""
        return LayerNumerics(
            stored=self.other_bytes,
            autocast=self.autocast,
            trains_base=self.lora is None,
            adapter_ranks=list_adapter_ranks(self.lora, self.shape) if self.lora else {},
            is_quantised=self.is_quantised,
            has_dora=bool(self.lora and self.lora.dora),
            adapts_as_given=self.is_quantised and self.autocast and is_on_gpu,
        )


def computes_in_bf16(precision: str, shape: ModelShape) -> bool:
    """Returns whether a stage computes in bf16; `auto` is what the model's files say."""
    return precision == "bf16" or (precision == "auto" and shape.stored_bytes == 2)


def hold_model(precision: str, lora: Lora | None, shape: ModelShape) -> TrainedModel:
    """Returns how a stage holds the model that it trains."""
    is_bf16 = computes_in_bf16(precision, shape)
    if lora is None:
        return TrainedModel(shape, None, 4, 4, is_bf16, shape.n_parameters)
    held = lora.base_weights
    if held == "auto":
        held = "bf16" if is_bf16 and shape.stored_bytes == 2 else "fp32"
    plain = 4 if held == "fp32" or not is_bf16 else 2
    n_trained = count_adapter_parameters(lora, shape)
    return TrainedModel(shape, lora, NF4_BYTES if held == "nf4" else plain, plain, is_bf16, n_trained)


def count_optimizer_bytes(name: str, n_trained: int) -> float:
    """Returns the bytes of AdamW's moments on the device; paged ones are moved to host memory when it is full.

    In 8 bits a moment has a byte a number and four for 256 of them (bitsandbytes).
    """
    if name.startswith("paged"):
        return 0.0
    return n_trained * (2 * (1 + 4 / 256) if name.endswith("8bit") else 8)

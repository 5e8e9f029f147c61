"""Counts the floating-point operations that a model's passes over tokens need, and knows the peak of common GPUs.

A multiplication of matrices needs 2 operations a weight and token forward, 2 for the gradient of its input, 2 for that
of the weight where it is trained: 6 N a token for a model of N weights in linear layers and head, 4 N where they are
frozen. Attention needs 4 operations for each pair of a token and one that it sees, a layer and a unit of the queries'
width, and twice that backward (PaLM, arXiv:2204.02311, appendix B; half of it there, where causal pairs alone count).
What gradient checkpointing computes again is not counted, nor is padding.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

# Dense bf16 operations a second of tensor cores, in 1e12, from NVIDIA's data sheets without sparsity; the longer name
# first where one begins like another.
PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("H200", 989.5),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.5),
    ("A100", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 4080", 97.5),
    ("RTX 3090", 71.0),
)


class FlopCosts(NamedTuple):
    """The operations of a model: a token of a forward pass, of a training pass, and a pair of tokens in attention.

    A pair costs `pair` forward and three times that in a training pass.
    """

    forward: float
    train: float
    pair: float

    def count_pass(self, tokens: Tensor, pairs: Tensor, *, with_backward: bool) -> Tensor:
        """Returns the operations of a pass over `tokens` in which they see `pairs` tokens altogether."""
        if with_backward:
            return tokens * self.train + 3 * pairs * self.pair
        return tokens * self.forward + pairs * self.pair


def measure_flop_costs(model: nn.Module) -> FlopCosts:
    """Reads from a model's linear layers and its config what its passes cost.

    Of the experts of a mixture those count that a token is sent to. Adapters are linear layers too. A weight in 4 bits
    has as many numbers as its layer says, not as its tensor.
    """
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    n_experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    share = (getattr(config, "num_experts_per_tok", None) or 1) / n_experts
    forward = train = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weights = module.in_features * module.out_features
            forward += 2 * weights
            train += (6 if module.weight.requires_grad else 4) * weights
        for weight in module.parameters(recurse=False):
            if weight.ndim == 3 and n_experts > 1:  # all experts of a layer in one tensor
                forward += 2 * share * weight.numel()
                train += (6 if weight.requires_grad else 4) * share * weight.numel()
    return FlopCosts(forward, train, 4.0 * _measure_query_width(config) * config.num_hidden_layers)


def _measure_query_width(config: Any) -> int:
    """Returns the width of all of a layer's queries, and that of its states where each layer has other heads.

    It is 0 for a model without attention.
    """
    n_heads = getattr(config, "num_attention_heads", 0)
    if not isinstance(n_heads, int):
        return int(config.hidden_size)
    return n_heads * int(getattr(config, "head_dim", None) or config.hidden_size // max(n_heads, 1))


def find_peak_tflops(device: Any) -> float | None:
    """Returns the peak of a GPU in 1e12 operations a second. Returns None for a CPU and for GPUs not in the table."""
    if device.type != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_TFLOPS if known in name), None)

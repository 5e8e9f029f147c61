"""A linear head that computes in fp32 whatever the precision of the model below it.

A scorer's or critic's output is a small number on an open scale: in bf16 two scores of 8.01 and 8.03 are one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Fp32Linear(nn.Linear):
    """A linear layer with fp32 weights that computes in fp32, under autocast and where DeepSpeed has it in bf16."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias, dtype=torch.float32)

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(input.float(), self.weight.float(), bias)

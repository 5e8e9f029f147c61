"""How far outputs in 4 bits are from those in full precision."""

import pytest
import torch

from qwen_align.align.models.quantization_error import TOKENS_AT_ONCE, compare_outputs


def test_errors_are_those_of_all_tokens_at_once() -> None:
    draw = torch.Generator().manual_seed(0)
    full = torch.randn(2 * TOKENS_AT_ONCE + 3, 50, generator=draw)
    quantised = full + 0.1 * torch.randn(full.shape, generator=draw)
    found = compare_outputs(quantised, full)
    assert found.relative == pytest.approx(float((quantised - full).norm() / full.norm()), rel=1e-5)
    wanted, ours = torch.distributions.Categorical(logits=full), torch.distributions.Categorical(logits=quantised)
    assert found.kl == pytest.approx(float(torch.distributions.kl_divergence(wanted, ours).mean()), rel=1e-4)

import pytest
import torch

from qwen_align.align.generation.engine import Request, compute_sample_key, compute_weights_checksum
from qwen_align.align.settings.sampling import Sampling

FREE = Sampling(temperature=1.0, max_tokens=5)


def make_weights():
    draw = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(5, 7, generator=draw),
        "b": torch.randn(3, generator=draw).bfloat16(),
        "c": torch.tensor(1.5, dtype=torch.float64),
        "d": torch.randint(0, 255, (4, 2), generator=draw, dtype=torch.uint8),
    }


def checksum(weights):
    return compute_weights_checksum(weights.items())


def test_the_checksum_names_equal_weights_alike_whatever_their_order_and_layout():
    weights = make_weights()
    assert len(checksum(weights)) == 16
    assert checksum(dict(reversed(weights.items()))) == checksum(weights)
    assert checksum(weights | {"a": weights["a"].t().contiguous().t()}) == checksum(weights)


def change_last_bit(weights):
    weights["a"].view(torch.int32)[4, 6] ^= 1


def exchange_two(weights):
    weights["a"][0, 0], weights["a"][4, 1] = weights["a"][4, 1].clone(), weights["a"][0, 0].clone()


def rename(weights):
    weights["e"] = weights.pop("a")


def change_small_type(weights):
    weights["b"][1] *= 1.01


def change_scalar(weights):
    weights["c"] += 1e-15


def change_byte(weights):
    weights["d"][3, 1] += 1


def reshape(weights):
    weights["a"] = weights["a"].reshape(7, 5)


def recast(weights):
    weights["d"] = weights["d"].to(torch.int8)


def drop(weights):
    del weights["c"]


@pytest.mark.parametrize(
    "change",
    [
        change_last_bit,
        exchange_two,
        rename,
        change_small_type,
        change_scalar,
        change_byte,
        reshape,
        recast,
        drop,
    ],
)
def test_the_checksum_shows_every_change(change):
    weights = make_weights()
    before = checksum(weights)
    change(weights)
    assert checksum(weights) != before


def test_no_two_samples_share_a_key():
    requests = [
        Request(id, [1], 8, FREE, seed=seed, step=step)
        for id in ("p1", "p11", "1")
        for seed in (0, 1, 11)
        for step in (0, 1, 11)
    ]
    keys = [compute_sample_key(request, sample) for request in requests for sample in request.sample_numbers]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_a_key_is_the_same_in_every_process_and_release():
    """A literal: a killed run resumed by another process or version must draw on."""
    assert compute_sample_key(Request("p1", [1], 4, FREE, seed=3, step=2), 1) == 3038311910848415849

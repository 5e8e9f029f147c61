"""The vllm engine's contract: what it asks of TRL's VLLMGeneration, here a scripted one, and makes of its answers."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from trl.generation.vllm_generation import VLLMGeneration

from qwen_align.align.generation.engine import Request
from qwen_align.align.generation.vllm import VllmEngine, compute_order_free_checksum
from qwen_align.align.settings.sampling import Sampling

SAMPLING = Sampling(temperature=0.7, max_tokens=4)


def held(model: nn.Module) -> Any:
    """What a colocated VLLMGeneration has of the model vLLM runs, at its place."""
    runner = SimpleNamespace(model_runner=SimpleNamespace(model=model))
    return SimpleNamespace(llm_engine=SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner)))


class Scripted:
    """Answers every prompt with its length and the row's number, and a stop token on even rows."""

    mode = "colocate"

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Any] = []
        self.sent, self.synced = model, 0
        self.llm = held(model)
        self.temperature = self.top_p = self.top_k = self.min_p = self.max_completion_length = None
        self.generation_kwargs: dict[str, Any] = {}

    def generate(self, prompts: Any, images: Any, num_generations: int, profiler: Any = None) -> Any:
        self.calls.append((prompts, num_generations, vars(self).copy()))
        completions = [[len(ids), 10 + row, *([1] if row % 2 == 0 else [])] for row, ids in enumerate(prompts)]
        logprobs = [[[-0.1 * (place + 1)] for place in range(len(ids))] for ids in completions]
        return prompts, completions, logprobs, None

    def sync_weights(self) -> None:
        self.synced += 1

    def _iter_named_params(self) -> Any:
        return self.sent.named_parameters()


def engine(**changes: Any) -> tuple[VllmEngine, Scripted]:
    scripted = Scripted(nn.Linear(3, 2))
    for name, value in changes.items():
        setattr(scripted, name, value)
    return VllmEngine(scripted, stop_ids=[1], vocab_size=100, max_positions=64), scripted


def test_the_script_has_the_signatures_of_the_real_one() -> None:
    for name in ("generate", "sync_weights", "_iter_named_params"):
        real, ours = (inspect.signature(getattr(kind, name)) for kind in (VLLMGeneration, Scripted))
        assert list(real.parameters) == list(ours.parameters)
    made = inspect.signature(VLLMGeneration.__init__).parameters
    wanted = {"model", "accelerator", "processing_class", "mode", "server_base_url", "server_timeout", "group_port"}
    wanted |= {"gpu_memory_utilization", "max_model_length", "enable_sleep_mode", "logprobs", "max_completion_length"}
    assert wanted <= set(made)
    source = inspect.getsource(VLLMGeneration)
    for attribute in ("self.temperature", "self.top_p", "self.top_k", "self.min_p", "self.generation_kwargs"):
        assert f"= {attribute}\n" in source or f"({attribute})" in source, "read when it generates"
    assert "driver_worker.model_runner.model.load_weights" in source, "where the weights vLLM holds are"


def test_prompts_are_repeated_and_answers_go_to_their_samples() -> None:
    one, scripted = engine()
    requests = [Request("a", [5, 6, 7], 2, SAMPLING, seed=0), Request("b", [8], 2, SAMPLING, seed=0, first_sample=4)]
    made = list(one.generate(requests))
    ((prompts, n, settings),) = scripted.calls
    assert prompts == [[5, 6, 7], [5, 6, 7], [8], [8]]
    assert n == 2
    assert (settings["temperature"], settings["max_completion_length"]) == (0.7, 4)
    assert settings["generation_kwargs"] == {"stop_token_ids": [1]}
    assert [(m.request.id, m.sample, m.token_ids, m.finish_reason) for m in made] == [
        ("a", 0, [3, 10, 1], "stop"),
        ("a", 1, [3, 11], "length"),
        ("b", 4, [1, 12, 1], "stop"),
        ("b", 5, [1, 13], "length"),
    ]
    assert made[0].sampled_logps == pytest.approx([-0.1, -0.2, -0.3])


def test_the_checksum_shows_weights_that_did_not_arrive() -> None:
    one, scripted = engine()
    assert one.sync_weights(scripted.sent, 1) == one.compute_checksum(scripted.sent)
    assert scripted.synced == 1
    stale = nn.Linear(3, 2)
    scripted.llm = held(stale)
    assert one.sync_weights(scripted.sent, 2) != one.compute_checksum(scripted.sent)
    scripted.mode = "server"
    assert one.sync_weights(scripted.sent, 3) is None, "a server's weights cannot be seen"


def test_the_checksum_knows_joined_padded_and_shared_weights() -> None:
    one, other = torch.randn(4, 3), torch.randn(2, 3)
    apart = compute_order_free_checksum([("q", one), ("k", other)], torch.bfloat16)
    joined = torch.cat([one, other, torch.zeros(5, 3)])
    assert compute_order_free_checksum([("qkv", joined)], torch.bfloat16) == apart
    assert compute_order_free_checksum([("k", other), ("q", one), ("tied", one)], torch.bfloat16) == apart
    changed = one.clone()
    changed[0, 0] += 1
    assert compute_order_free_checksum([("q", changed), ("k", other)], torch.bfloat16) != apart


def test_requests_of_two_kinds_and_answers_that_lack_something_are_errors() -> None:
    one, scripted = engine()
    two = [Request("a", [5], 2, SAMPLING, seed=0), Request("b", [5], 3, SAMPLING, seed=0)]
    with pytest.raises(ValueError, match="one kind of sampling and one number"):
        list(one.generate(two))
    scripted.generate = lambda prompts, images, n: (prompts, [[1]], [[[None]]], None)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="1 completions for 2 prompts"):
        list(one.generate(two[:1]))
    with pytest.raises(FloatingPointError, match="processed_logprobs"):
        list(one.generate([Request("a", [5], 1, SAMPLING, seed=0)]))
    assert list(one.generate([])) == []

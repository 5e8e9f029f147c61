"""What a stage's process sets before it computes anything."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qwen_align.align.models.loading import load_base_model
from qwen_align.align.pipeline import worker
from qwen_align.align.pipeline.worker import prepare_torch
from qwen_align.align.rl.actor import Actor
from qwen_align.align.rl.micro_batches import build_micro_batch
from qwen_align.align.settings.runtime import Runtime


@pytest.fixture
def prepared() -> Iterator[None]:
    """torch as a stage on a CPU has it, with two threads, and as it was afterwards."""
    threads, fill = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    prepare_torch(Runtime(device="cpu", threads=2))
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("prepared")
def test_the_gradient_of_a_shared_prompt_is_the_same_every_time(tiny_model: Path) -> None:
    """The keys of one prompt get gradients from five completions, more numbers than torch leaves to one thread."""
    actor = Actor(load_base_model(tiny_model), temperature=1.0)
    prompt = [token % 399 for token in range(700)]
    ids = [torch.tensor([*prompt, *range(n, n + 9)]) for n in range(5)]
    batch = build_micro_batch(list(range(5)), ids, [len(prompt)] * 5, [b"the prompt"] * 5)
    assert batch.shares_prompts

    def compute_gradients() -> list[torch.Tensor]:
        actor.zero_grad()
        logps = actor(batch).logps
        assert logps is not None
        (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum().backward()
        return [weight.grad.clone() for weight in actor.parameters() if weight.grad is not None]

    assert torch.are_deterministic_algorithms_enabled()  # on a busy machine a race may show in none of four passes
    first = compute_gradients()
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(first, compute_gradients(), strict=True))


def test_large_blocks_are_mapped_on_a_cpu(monkeypatch: pytest.MonkeyPatch, prepared: None) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(worker, "map_large_blocks", lambda: asked.append(True))
    prepare_torch(Runtime(device="cpu"))
    assert asked


@pytest.mark.parametrize(("free_bytes", "says_so"), [(3 << 20, True), (1 << 30, False)])
def test_a_full_disk_is_named_whatever_the_library_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, says_so: bool
) -> None:
    def fail(folder: Path, lease: None, **_: float) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 862080 vs 861968")

    monkeypatch.setattr(worker, "_run_stage_in_folder", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, free_bytes))
    report = tmp_path / "report.json"
    assert worker.run_stage(tmp_path, report, started=0.0) == 4
    message = json.loads(report.read_text())["message"]
    assert ("no room is left on its disk (3 MiB free" in message) == says_so
    assert message.endswith("RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 862080 vs 861968")

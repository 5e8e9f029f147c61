"""What a real vLLM is asked in the recordings: updates of the embedded base, in full and with adapters, and draws."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from qwen_align.align.engines.vllm_client import VllmClient
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.vllm import EngineRequest, VllmEngine, choose_probe
from qwen_align.align.models import loading
from qwen_align.align.settings.sampling import Sampling

BASE = Path(__file__).parents[3] / "recipes" / "tiny_base"
MAX_TOKENS = 96
TEXTS = (
    "What is 12 + 30? The answer is",
    "Question: 3 * 4",
    "<|im_start|>user\n7 + 5<|im_end|>\n<|im_start|>assistant\n",
)
FREE = Sampling(temperature=1.0, max_tokens=8)
DRAWN = {
    "free": FREE,
    "warm": Sampling(temperature=0.7, max_tokens=6),
    "cut": Sampling(temperature=1.0, top_p=0.9, top_k=5, min_p=0.01, max_tokens=6),
    "greedy": Sampling(temperature=0.0, max_tokens=6),
}


class Update(NamedTuple):
    """An update of the engine: its version, and of what was drawn after it the model's own log-probs."""

    version: int
    generations: list[Generation]
    logps: list[list[float]]


def load_policy(*, tied: bool) -> PreTrainedModel:
    """The embedded base, with a head of its own where it is not tied."""
    model = loading.load_model(BASE, "fp32")
    if tied:
        return model
    config, state = model.config, model.state_dict()
    config.tie_word_embeddings = False
    apart: Any = AutoModelForCausalLM.from_config(config)
    apart.load_state_dict(state)
    stir(apart.lm_head.weight)
    return apart


@torch.no_grad()
def stir(weight: torch.Tensor) -> None:
    """Changes a weight by up to 3 %, the same on every machine."""
    weight.mul_(1 + 0.03 * torch.sin(torch.arange(weight.numel()).float()).view_as(weight))


def make_requests(step: int) -> list[Request]:
    """Requests of every kind of sampling, over all texts."""
    renderer = loading.load_renderer(BASE)
    return [
        Request(f"{name} {place}", renderer.encode(text), 2, sampling, seed=3, step=step)
        for name, sampling in DRAWN.items()
        for place, text in enumerate(TEXTS)
    ]


def open_engine(url: str, folder: Path) -> VllmEngine:
    """An engine of a server that runs."""
    renderer = loading.load_renderer(BASE)
    client = VllmClient([url], stop_ids=renderer.stop_ids, vocab_size=512)
    request = EngineRequest(
        "fp32", MAX_TOKENS, choose_probe([renderer.encode(text) for text in TEXTS], 96), trains=True
    )
    return VllmEngine(client, request, folder=folder, max_positions=1024)


def run_updates(engine: VllmEngine, *, tied: bool) -> list[Update]:
    """Updates the engine four times, to the base, another model, that with LoRA and with DoRA, and draws of each."""
    updates = []
    model = load_policy(tied=tied)
    updates.append(_update(engine, model, 0))
    for name, weight in model.named_parameters():
        if "mlp" in name or "embed" in name or "lm_head" in name:
            stir(weight)
    updates.append(_update(engine, model, 1))
    for version, dora in ((2, False), (3, True)):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules="all-linear", use_dora=dora)
        adapted: Any = get_peft_model(model, config)
        for name, weight in adapted.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                with torch.no_grad():
                    weight.copy_(0.1 * torch.cos(torch.arange(weight.numel()).float() + len(name)).view_as(weight))
            elif ".lora_magnitude" in name:
                stir(weight)
        updates.append(_update(engine, adapted.get_base_model(), version))
        model = adapted.unload()
    return updates


def _update(engine: VllmEngine, model: PreTrainedModel, version: int) -> Update:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    engine.sync_weights(model, version)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items()), "the policy stays"
    generations = sorted(engine.generate(make_requests(version)), key=lambda one: (one.request.id, one.sample))
    return Update(version, generations, [teacher_force(model, one) for one in generations])


@torch.no_grad()
def teacher_force(model: PreTrainedModel, generation: Generation) -> list[float]:
    """The log-probs of a generation's tokens under the model, at its temperature; NaN where a cut leaves one out."""
    sampling, ids = generation.request.sampling, generation.token_ids
    prompt = generation.request.prompt_ids
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double()
    logits = logits / (sampling.temperature or 1.0)
    if sampling.is_truncated:
        logits = cut(logits, sampling)
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


def cut(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Cuts as vLLM does: min-p, then top-k, then top-p."""
    probabilities = logits.softmax(-1)
    logits = logits.masked_fill(probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
    if sampling.top_k:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[:, -1:], -torch.inf)
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
    return logits.masked_fill(dropped, -torch.inf)

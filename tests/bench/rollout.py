"""Tokens per CPU second and peak memory of the local engine beside transformers' generate, in one run.

Both get the same prompts, groups of 8 and the same lengths: completion k of a group ends after low * 8 ** (k / 7)
tokens, so the longest is 8 times the shortest. generate is called as TRL's trainers call it: once, on all rows, padded
on the left. Both sample at temperature 1. Each side runs in a process of its own, in turns.

    python tests/bench/rollout.py [--model tiny 50m FOLDER] [--rows 128] [--low 16] [--rounds 2] [--threads 1]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from qwen_align.align.generation.engine import Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.settings.sampling import Sampling

GROUP, SPREAD = 8, 8
PROMPT_LENGTHS = (50, 100)
STOP = 1  # is never drawn early in effect: one token of a vocabulary of random weights
SHAPES = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "head_dim": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "50m": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 10,
        "head_dim": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
WAYS = {
    "free": {"temperature": 1.0},
    "thinking": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tiny", "50m"], help="tiny, 50m, or folders")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--low", type=int, default=16, help="tokens of the shortest completion of a group")
    parser.add_argument("--rounds", type=int, default=2, help="the best counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    for model in options.model:
        for way in options.ways:
            theirs, ours = (child(options, model, way, side) for side in ("theirs", "ours"))
            print(
                f"{model}, {options.rows} rows, {way}: generate {theirs['rate']:,.0f}, local {ours['rate']:,.0f} "
                f"tokens per CPU second, ratio {ours['rate'] / theirs['rate']:.2f}; "
                f"peak beyond the model {theirs['mib']:,.0f} and {ours['mib']:,.0f} MiB"
            )


def child(options: argparse.Namespace, model: str, way: str, side: str) -> dict[str, float]:
    line = [sys.executable, __file__, "--side", side, "--model", model, "--ways", way]
    for name in ("rows", "low", "rounds", "threads"):
        line += [f"--{name}", str(getattr(options, name))]
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    model, (way,) = make_model(options.model[0]), options.ways
    prompts, limits = make_rows(options.rows, options.low, model.config.vocab_size)
    side: Callable[[], int] = {
        "ours": lambda: with_engine(model, prompts, limits, WAYS[way]),
        "theirs": lambda: with_generate(model, prompts, limits, WAYS[way]),
    }[options.side]
    model(torch.ones(1, 8, dtype=torch.int64))
    before = peak_mib()
    rates = []
    for _ in range(options.rounds):
        started = time.process_time()
        n_tokens = side()
        rates.append(n_tokens / (time.process_time() - started))
    return {"rate": max(rates), "mib": peak_mib() - before}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_model(name: str) -> PreTrainedModel:
    """Random weights in the shape of the embedded base, or of 48 million parameters, or a folder's model."""
    if name not in SHAPES:
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[name], tie_word_embeddings=True, max_position_embeddings=2048)
    return Qwen3ForCausalLM(config).eval()


def make_rows(rows: int, low: int, n_vocab: int) -> tuple[list[list[int]], list[int]]:
    """A prompt and a length for every row, group by group."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(*PROMPT_LENGTHS, (rows // GROUP,), generator=draw).tolist()
    prompts = [torch.randint(n_vocab // 2, n_vocab, (length,), generator=draw).tolist() for length in lengths]
    limits = [round(low * SPREAD ** (place / (GROUP - 1))) for place in range(GROUP)]
    return [prompt for prompt in prompts for _ in range(GROUP)], limits * len(prompts)


def with_engine(model: PreTrainedModel, prompts: list[list[int]], limits: list[int], way: dict[str, float]) -> int:
    requests = [
        Request(f"p{row}", prompt, 1, Sampling(max_tokens=limit, **way), seed=0)
        for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    return sum(len(one.token_ids) for one in LocalEngine(model, stop_ids=[STOP]).generate(requests))


class Limits(StoppingCriteria):
    """Each row ends at its own length."""

    def __init__(self, limits: list[int], width: int) -> None:
        self.limits, self.width = torch.tensor(limits), width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return input_ids.shape[1] - self.width >= self.limits


@torch.no_grad()
def with_generate(model: PreTrainedModel, prompts: list[list[int]], limits: list[int], way: dict[str, float]) -> int:
    """One call on all rows, padded on the left; tokens behind a row's end are not counted."""
    width = max(map(len, prompts))
    made = model.generate(
        torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        do_sample=True,
        temperature=way["temperature"],
        top_k=way.get("top_k", 0),
        top_p=way.get("top_p", 1.0),
        max_new_tokens=max(limits),
        eos_token_id=STOP,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([Limits(limits, width)]),
    )[:, width:]
    ends = [(row == STOP).nonzero()[:1, 0].tolist() for row in made]
    return sum(min(limit, end[0] + 1) if end else limit for limit, end in zip(limits, ends, strict=True))


if __name__ == "__main__":
    main()

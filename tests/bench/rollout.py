"""Tokens per CPU second of the local engine beside transformers' generate, on the same prompts, in one run.

Lengths differ, as they do in RL: a few tokens stop a completion, so that a random model stops about once in 75
tokens, and no completion has more than 120. Both sample at temperature 1; only tokens up to the stop count.

    python tests/bench/rollout.py [--rows 128] [--rounds 3] [--threads 1] [--model FOLDER]
"""

import argparse
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from qwen_align.align.rollout.engine import Request
from qwen_align.align.rollout.local import LocalEngine
from qwen_align.align.spec.sampling import Sampling

MAX_TOKENS = 120
PROMPT_LENGTHS = (50, 100)
SAMPLINGS = {
    "free, T 1": {"temperature": 1.0},
    "thinking, T 0.6, top-p 0.95, top-k 20": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--samples", type=int, default=8, help="completions a prompt")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-rows", type=int, default=None, help="rows of the engine's micro-batch")
    parser.add_argument("--model", default=None, help="a model folder instead of the tiny random Qwen3")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model) if options.model else make_model()
    model.eval()
    n_vocab = model.config.vocab_size
    stops = list(range(1, 1 + max(1, n_vocab // 75)))
    settings = {} if options.max_rows is None else {"max_rows": options.max_rows}
    engine = LocalEngine(model, stop_ids=stops, **settings)
    for rows in options.rows:
        for name, way in SAMPLINGS.items():
            requests = make_requests(rows, options.samples, n_vocab, Sampling(max_tokens=MAX_TOKENS, **way))
            theirs = best(lambda r=requests: with_generate(model, r, stops), options.rounds)
            ours = best(lambda r=requests: sum(len(g.token_ids) for g in engine.generate(r)), options.rounds)
            print(f"{rows} rows, {name}: generate {theirs:,.0f}, local {ours:,.0f} tokens/s, ratio {ours / theirs:.2f}")


def make_model() -> PreTrainedModel:
    """The shape of the quickstart's base: half a million parameters."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=450,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
        )
    )


def make_requests(rows: int, samples: int, n_vocab: int, sampling: Sampling) -> list[Request]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(*PROMPT_LENGTHS, (rows // samples,), generator=draw).tolist()
    prompts = [torch.randint(n_vocab // 2, n_vocab, (length,), generator=draw).tolist() for length in lengths]
    return [Request(f"p{i}", prompt, samples, sampling, seed=0) for i, prompt in enumerate(prompts)]


def with_generate(model: PreTrainedModel, requests: list[Request], stops: list[int]) -> int:
    """Tokens made by one call of generate on all rows, left-padded: what TRL's trainers do."""
    prompts = [request.prompt_ids for request in requests for _ in range(request.n)]
    width = max(map(len, prompts))
    sampling = requests[0].sampling
    made = model.generate(
        torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=stops,
        pad_token_id=0,
    )[:, width:]
    return sum(next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in made.tolist())


def best(run: Callable[[], int], rounds: int) -> float:
    """Tokens per CPU second of the fastest round, after one that only warms up."""
    run()
    rates = []
    for _ in range(rounds):
        start = time.process_time()
        n_tokens = run()
        rates.append(n_tokens / (time.process_time() - start))
    return max(rates)


if __name__ == "__main__":
    main()

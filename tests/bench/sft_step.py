"""CPU seconds of SFT steps, ours beside plain TRL's; and of packed rows beside padded ones. Prints ratios.

The first trains the embedded model on rendered traces: whole optimiser steps of TRL's SFTTrainer as it comes (padded
batches of 8 rows, no checkpointing, fp32) and of our stage's trainer, with logging and progress in both.

The second is a random Qwen3 of 6 million parameters, or of 48 million with `--large`, forward and backward, the head on
the same tokens on all sides: rows padded to the longest of 8 in random order, the same rows sorted by length first, and
packed. Attention is per row
or padded per micro-batch; no mask is ever the square of all tokens. The ideal is padded positions over real tokens.

Sides take turns in one process, so that a busy machine slows all of them.

    python tests/bench/sft_step.py [--rounds 3] [--threads 1] [--large]
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rollout import make_model
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.settings.pass_limits import get_pass_limits
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training.micro_batches import plan_micro_batches
from qwen_align.align.training.packed_forward import add_packed_head
from qwen_align.align.training.token_scores import score_tokens

BASE = Path(__file__).parents[2] / "recipes" / "tiny_base"
BATCH, STEPS, WARMUP = 8, 40, 5
LENGTHS, ROWS = (64, 508), 32
RUNTIME = Runtime(device="cpu", micro_batch=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="48 million parameters: minutes a round")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    sides, n_tokens = prepare_sft()
    seconds = take_turns(sides, options.rounds)
    said = ", ".join(f"{name} {n_tokens / statistics.median(found):,.0f}" for name, found in seconds.items())
    print(f"embedded model, tokens a CPU second: {said}; {describe_ratios(seconds, 'TRL', 'ours')}")

    sides, padded_share, sorted_share = prepare_packing(make_model("50m") if options.large else make_small_model())
    seconds = take_turns(sides, options.rounds)
    n_millions = 48 if options.large else 6
    print(
        f"{n_millions} million parameters: padded positions over tokens {padded_share:.2f}, sorted {sorted_share:.2f}"
    )
    print(f"  packed against random order: {describe_ratios(seconds, 'random order', 'packed', padded_share)}")
    print(f"  packed against sorted: {describe_ratios(seconds, 'sorted', 'packed')}")


def take_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each side in each round; a side says how long what is measured took."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side())
    return seconds


def describe_ratios(seconds: dict[str, list[float]], slow: str, fast: str, ideal: float | None = None) -> str:
    ratios = [one / other for one, other in zip(seconds[slow], seconds[fast], strict=True)]
    middle = statistics.median(ratios)
    share = f", {middle / ideal:.0%} of the ideal" if ideal else ""
    return f"ratio {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}){share}"


# --- the embedded model, whole steps


def prepare_sft() -> tuple[dict[str, Callable[[], float]], int]:
    """The two sides on the same rows in the same order, and how many tokens they have after the warm-up."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from qwen_align.align.context import Context
    from qwen_align.align.models import loading
    from qwen_align.align.rendering.training_set import render_rows
    from qwen_align.align.settings.sft import Sft
    from qwen_align.align.stages import sft
    from qwen_align.align.training import fit, trl_arguments
    from qwen_align.align.training.callbacks import ProgressCallback
    from qwen_align.align.training.row_order import draw_row_order
    from qwen_align.data_builders.arithmetic import Arithmetic

    rows = list(Arithmetic(rows="trace", n=900, steps=[1, 2, 3, 4, 5, 5]).generate(0))
    samples = render_rows(loading.load_renderer(BASE), rows, 256).samples
    order = draw_row_order(len(samples), STEPS * BATCH, 0)
    data = Dataset.from_list([sft.build_columns(sample) for sample in samples]).select(order)
    counted = sum(len(samples[row].ids) for row in order[WARMUP * BATCH :])

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARMUP:
                self.started = time.process_time()
            self.ended = time.process_time()

    def build_theirs(folder: Path, clock: Clock) -> Any:
        arguments = SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            learning_rate=1e-3,
            max_length=None,
            train_sampling_strategy="sequential",
            logging_steps=1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        tokenizer = fit.load_padding_tokenizer(BASE)
        return SFTTrainer(
            loading.load_model(BASE), arguments, train_dataset=data, processing_class=tokenizer, callbacks=[clock]
        )

    def build_ours(folder: Path, clock: Clock) -> Any:
        settings = Sft.model_validate(
            {
                "name": "sft",
                "kind": "sft",
                "from_model": "base",
                "from_data": ["rows"],
                "max_tokens": 256,
                "batch": BATCH,
                "epochs": 1,
                "learning_rate": 1e-3,
            }
        )
        model = loading.load_model(BASE)
        set_attention(model, RUNTIME.attention, "cpu")
        context = Context(folder, 0, RUNTIME)
        trainer = sft.Trainer(
            model,
            trl_arguments.build_sft_arguments(settings, RUNTIME, folder, steps=STEPS, seed=0),
            train_dataset=data,
            processing_class=fit.load_padding_tokenizer(BASE),
            callbacks=[ProgressCallback(context, tokens_per_step=100.0), clock],
        )
        trainer.context = context
        return trainer

    def measure(build: Callable[[Path, Clock], Any]) -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            build(Path(folder), clock).train()
        return clock.ended - clock.started

    return {"TRL": lambda: measure(build_theirs), "ours": lambda: measure(build_ours)}, counted


# --- a random model, forward and backward


def make_small_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return Qwen3ForCausalLM(config)


def prepare_packing(model: PreTrainedModel) -> tuple[dict[str, Callable[[], float]], float, float]:
    """The three sides, and padded positions over tokens in random order and sorted."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(*LENGTHS, (ROWS,), generator=draw).tolist()
    rows = [torch.randint(1000, (n,), generator=draw) for n in lengths]
    model.train()
    set_attention(model, RUNTIME.attention, "cpu")
    add_packed_head(model)
    packed = model.forward
    ordered = sorted(range(ROWS), key=lambda row: lengths[row])
    passes = {
        "random order": cut(range(ROWS)),
        "sorted": cut(ordered),
        "packed": plan_micro_batches(lengths, get_pass_limits(RUNTIME, "cpu"), is_padded=False),
    }
    head: Any = model.get_output_embeddings()

    def read_padded(ids: Tensor, mask: Tensor) -> Tensor:
        """As our packed forward pass but for the packing: the head is computed at the same places."""
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        needed = mask[:, 1:].bool()
        return score_tokens(hidden[:, :-1][needed], head, ids[:, 1:][needed], needs_entropies=False).logps.sum()

    def read_packed(ids: Tensor, mask: Tensor) -> Tensor:
        labels = ids.masked_fill(mask == 0, -100)
        found: Tensor = packed(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs.sum()
        return found

    def measure(name: str) -> float:
        read = read_packed if name == "packed" else read_padded
        model.zero_grad()
        started = time.process_time()
        for numbers in passes[name]:
            part = [rows[number] for number in numbers]
            ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in part], batch_first=True)
            read(ids, mask).backward()
        return time.process_time() - started

    def share(name: str) -> float:
        n_padded = sum(len(numbers) * max(lengths[number] for number in numbers) for numbers in passes[name])
        return n_padded / sum(lengths)

    sides: dict[str, Callable[[], float]] = {name: lambda name=name: measure(name) for name in passes}  # type: ignore[misc]
    return sides, share("random order"), share("sorted")


def cut(rows: Sequence[int]) -> list[list[int]]:
    return [list(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]


if __name__ == "__main__":
    main()

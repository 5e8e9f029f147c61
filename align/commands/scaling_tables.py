"""Renders the tables of docs/scaling.md from the estimator: what of Qwen3 fits which card."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from qwen_align.align.estimation.device import Device
from qwen_align.align.estimation.known_configs import build_qwen3_config
from qwen_align.align.estimation.stage_estimate import StageEstimate
from qwen_align.align.estimation.units import GB, format_gib
from qwen_align.align.reporting.markdown import format_markdown_table
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime, Strategy
from qwen_align.align.stages.fitting import find_most_tokens

BEGIN, END = "<!-- made by `make generated` -->", "<!-- end -->"
METHODS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "LoRA": {"rank": 16, "alpha": 32},
    "QLoRA": {"rank": 16, "alpha": 32, "base_weights": "nf4"},
}
_COMMON: dict[str, Any] = {"name": "stage", "from_model": "base", "from_data": ["rows"], "learning_rate": 1e-5}
SFT = {**_COMMON, "kind": "sft", "max_tokens": 512, "batch": 16, "epochs": 1}
GRPO = {
    **_COMMON,
    "kind": "grpo",
    "steps": 100,
    "prompts_per_step": 32,
    "completions_per_prompt": 8,
    "sampling": {"temperature": 1.0, "max_tokens": 512},
    "rewards": [{"kind": "math_answer"}],
}


class Question(NamedTuple):
    """A table of docs/scaling.md: the card, its sizes of Qwen3, the stage, and what is as long as it may be."""

    title: str
    device: Device
    sizes: tuple[str, ...]
    stage: dict[str, Any]
    what: str
    strategies: tuple[Strategy, ...] = ()  # by which all weights are trained too


QUESTIONS = (
    Question(
        "GRPO on one GPU of 24 GB (22.4 GiB)", Device(24 * GB), ("0.6B", "1.7B", "4B", "8B", "14B"), GRPO, "completion"
    ),
    Question(
        "GRPO on 8 GPUs of 80 GB (74.5 GiB each)",
        Device(80 * GB, 8),
        ("8B", "14B", "32B"),
        GRPO,
        "completion",
        ("zero2", "zero3"),
    ),
    Question("SFT on one GPU of 24 GB (22.4 GiB)", Device(24 * GB), ("0.6B", "1.7B", "4B", "8B", "14B"), SFT, "row"),
    Question("SFT on one GPU of 48 GB (44.7 GiB)", Device(48 * GB), ("1.7B", "4B", "8B", "14B", "32B"), SFT, "row"),
    Question("SFT on one GPU of 80 GB (74.5 GiB)", Device(80 * GB), ("1.7B", "4B", "8B", "14B", "32B"), SFT, "row"),
    Question(
        "SFT on 8 GPUs of 80 GB (74.5 GiB each)",
        Device(80 * GB, 8),
        ("4B", "8B", "14B", "32B"),
        SFT,
        "row",
        ("zero2", "zero3"),
    ),
)


def render_scaling_tables() -> str:
    """Renders all tables as Markdown."""
    return "\n".join(_render_table(question) for question in QUESTIONS)


def _render_table(question: Question) -> str:
    """Renders one table: a line for each size and each way of training it."""
    headings = ["Qwen3", "method", f"longest {question.what} that fits, tokens", "largest phase, GiB", "most of it"]
    runtime = Runtime(
        micro_batch=1, gradient_checkpointing=True, prefill_tokens=4096, processes=question.device.n_devices
    )
    parse = TypeAdapter[Any](AnyStage).validate_python
    rows = []
    for size in question.sizes:
        ways = [(method, lora, "ddp") for method, lora in METHODS.items()]
        ways[1:1] = [(f"full, {strategy}", None, strategy) for strategy in question.strategies]
        for method, lora, strategy in ways:
            settings, config = parse({**question.stage, "lora": lora}), build_qwen3_config(size)
            spread = runtime.model_copy(update={"strategy": strategy})
            tokens, estimate = find_most_tokens(settings, spread, config, question.device)
            rows.append([size, method, f"{tokens:,}" if tokens else "none", *_describe(estimate)])
    return f"**{question.title}**\n\n{format_markdown_table(headings, rows)}\n"


def _describe(estimate: StageEstimate) -> tuple[str, str]:
    """Returns the largest phase with its size, and its three largest parts."""
    peak = estimate.peak
    largest = sorted((part for part in peak.parts.items() if part[0] != "overhead"), key=lambda part: -part[1])[:3]
    at_once = f" ({estimate.rows_at_once} at once)" if peak.name == "draw" and estimate.rows_at_once else ""
    parts = ", ".join(f"{name} {format_gib(n_bytes)}" for name, n_bytes in largest)
    return f"{format_gib(peak.total)} in {peak.name}", parts + at_once


def insert_tables(text: str) -> str:
    """Returns the text of docs/scaling.md with today's tables between their marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render_scaling_tables()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(insert_tables(path.read_text(encoding="utf-8")), encoding="utf-8")

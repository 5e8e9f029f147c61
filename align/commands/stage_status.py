"""Reads how far a running stage is and what it measured last, and words it for the terminal, logs and notebooks."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.context import PROGRESS
from qwen_align.align.tracking.curve import JsonLinesReader, to_point

# What is shown of a step, where it is logged, and its name. The first come first: a narrow terminal cuts the others.
SHOWN_METRICS = (
    ("reward", "reward"),
    ("loss", "loss"),
    ("grad_norm", "grad norm"),
    ("held_out/accuracy", "held-out accuracy"),
    ("rewards/accuracies", "pairs ranked right"),
    ("kl", "KL"),
    ("memory/peak_gib", "peak GiB"),
    ("speed/mfu", "MFU"),
)


class StageStatus:
    """What is known of a running stage: its progress.json and the newest values of its metrics.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metrics_reader = JsonLinesReader(folder / "metrics.jsonl")
        self.progress: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.step: int | None = None  # of the metrics

    def read_new(self) -> None:
        """Reads what the stage has written since the last call."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # it has not begun, or has just finished
            self.progress = json.loads((self._folder / PROGRESS).read_text())
        for logged in self._metrics_reader.read_new():
            if point := to_point(logged):
                self.metrics |= point.figures
                self.step = point.step

    @property
    def done(self) -> int:
        """Returns the number of steps, rows or completions that are done, 0 where nothing is known yet."""
        return max(int(self.progress.get("done", 0)), self.step or 0)

    @property
    def total(self) -> int:
        """Returns the number of steps, rows or completions of the whole stage, 0 where it is not known."""
        return int(self.progress.get("total", 0))

    def format_progress(self) -> str:
        """Formats the progress as `12/60 steps  ETA 1:20`, "" before there is any."""
        return format_progress({**self.progress, "done": self.done}) if self.progress else ""

    def format_metrics(self) -> str:
        """Formats the newest metrics and the speed as `reward 0.52  loss 0.013  grad norm 0.81  3,400 tok/s`."""
        speed = format_speed(self.progress) if self.progress else ""
        return "  ".join(part for part in (format_metrics(self.metrics), speed) if part)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Formats those metrics of a step that are shown while it runs."""
    parts = [f"{name} {_format_number(metrics[key])}" for key, name in SHOWN_METRICS if key in metrics]
    return "  ".join([*parts, *_format_equal_rewards(metrics)])


def _format_equal_rewards(metrics: Mapping[str, float]) -> Iterator[str]:
    """Yields the share of groups whose rewards are all equal, with whether they are all 0 or all 1."""
    # The second name is TRL's.
    share = metrics.get("groups/no_signal_share", metrics.get("frac_reward_zero_std", 0.0))
    if share:
        shares = {0: metrics.get("groups/all_zero_share"), 1: metrics.get("groups/all_one_share")}
        parts = [f"all {value} in {part:.0%}" for value, part in shares.items() if part]
        yield f"rewards equal in {share:.0%} of groups" + (f" ({', '.join(parts)})" if parts else "")


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def format_progress(progress: Mapping[str, Any]) -> str:
    """Formats the progress of a stage as `12/60 steps  ETA 1:20`.

    The time left is that of the work of this process alone: what a killed one did was not measured.
    """
    done, total, seconds = progress["done"], progress["total"], progress["seconds"]
    parts = [f"{done:,}/{total:,} {progress['unit']}" if total else f"{done:,} {progress['unit']}"]
    if total and progress["done_here"] and done < total:
        parts.append(f"ETA {format_duration(seconds / progress['done_here'] * (total - done))}")
    return "  ".join(parts)


def format_speed(progress: Mapping[str, Any]) -> str:
    """Formats the tokens a second of this process, "" where none are counted."""
    is_known = progress["tokens_here"] and progress["seconds"] > 0
    return f"{progress['tokens_here'] / progress['seconds']:,.0f} tok/s" if is_known else ""


def format_duration(seconds: float) -> str:
    """Formats a number of seconds as `1:20`, or `2:05:07` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

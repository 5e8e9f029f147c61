"""Draws the learning curves of a run's stages for the report page, of those that still run too."""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qwen_align.align.pipeline.plan import PlannedStage
from qwen_align.align.reporting import svg
from qwen_align.align.settings.online_rl import OnlineRl

# What is drawn of a training stage, where it is logged: (metric, English, Chinese). Reward and accuracy come first, for
# an on-policy loss says nothing.
CURVES = (
    ("reward", "reward", "奖励"),
    ("held_out/accuracy", "held-out accuracy", "留出集正确率"),
    ("loss", "loss", "损失"),
    ("rewards/margins", "implied margin", "隐式间隔"),
    ("accuracy", "pairs ranked right", "偏好对排序正确率"),
    ("entropy", "entropy, nats a token", "熵（nat/token）"),
    ("completions/mean_tokens", "tokens a completion", "每个回答的 token 数"),
    ("completions/clipped_share", "cut at max_tokens", "被截断的比例"),
    ("groups/no_signal_share", "groups without signal", "无信号的组"),
    ("kl", "KL to the reference", "与参考模型的 KL"),
    ("value/explained", "variance the critic explains", "价值模型解释的方差"),
    ("grad_norm", "gradient norm", "梯度范数"),
    ("memory/peak_gib", "peak memory, GiB", "显存峰值（GiB）"),
    ("memory/estimate_gib", "estimated memory, GiB", "显存估计值（GiB）"),
    ("speed/tokens_per_second", "tokens a second", "每秒 token 数"),
    ("speed/mfu", "model-FLOP utilisation", "模型 FLOP 利用率"),
)
DONE, RUNNING, UNFINISHED = "done", "running", "unfinished"


def draw_training(name: str, group: Sequence[PlannedStage]) -> dict[str, Any] | None:
    """Draws the learning curves of one training stage, one line per seed. Returns None if nothing was logged.

    A stage that has not ended has the curves of its steps so far.
    """
    logged = [list(read_json_lines(stage, "metrics.jsonl")) for stage in group]
    pictures: list[dict[str, Any]] = []
    for metric, english, chinese in CURVES:
        lines = [[(float(line["step"]), float(line[metric])) for line in run if metric in line] for run in logged]
        drawn = [
            svg.Curve(points, index if len(lines) > 1 else len(pictures))
            for index, points in enumerate(lines)
            if points
        ]
        if drawn:
            last = statistics.fmean(curve.points[-1][1] for curve in drawn)
            picture = Markup(svg.draw_curves(drawn, title=english))
            pictures.append({"en": english, "zh": chinese, "svg": picture, "last": last})
    if not pictures:
        return None
    states = {find_state(stage) for stage in group}
    state = next((state for state in (RUNNING, UNFINISHED) if state in states), DONE)
    is_rl = isinstance(group[0].settings, OnlineRl)
    is_open = is_rl or state != DONE
    return {"name": name, "kind": group[0].kind, "pictures": pictures, "state": state, "is_open": is_open}


def choose_open_curves(training: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Opens the curves that are looked at first: of RL, of a stage that has not ended, else of the last stage."""
    if training and not any(curves["is_open"] for curves in training):
        training[-1]["is_open"] = True
    return training


def find_state(stage: PlannedStage) -> str:
    """Returns whether a stage is done, is being worked on, or has stopped before its end."""
    if stage.is_stored:
        return DONE
    return RUNNING if stage.folder.find_holder() else UNFINISHED


def read_json_lines(stage: PlannedStage, name: str) -> Iterator[dict[str, Any]]:
    """Yields the objects of a stage's JSON Lines file. Yields nothing if the file does not exist.

    Half a line at its end, which the stage is writing or a kill has left, is left out.
    """
    path: Path = stage.folder.path / name
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.endswith("\n"):
                    yield _parse_object(line)


def _parse_object(line: str) -> dict[str, Any]:
    """Parses a line as a JSON object. Raises ValueError if it is none."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line is no JSON object")
    return value

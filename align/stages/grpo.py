"""Runs a grpo stage: group-relative policy optimisation and variants, in our own loop or in TRL's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.models import loading
from qwen_align.align.rl.algorithm import build_grpo
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.stages import grpo_trl, online_rl


def run(spec: Grpo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains a policy with GRPO, in our own loop or in TRL's, and returns the stage's summary."""
    spec = loading.resolve_settings(spec, inputs[spec.from_model])
    if spec.trainer == "trl":
        return grpo_trl.run(spec, inputs, out, context)
    return online_rl.run(build_grpo(spec), inputs, out, context)

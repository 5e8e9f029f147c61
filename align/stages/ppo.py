"""Runs a ppo stage: proximal policy optimisation with a learned value of every token."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.models import loading
from qwen_align.align.rl.algorithm import build_ppo
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.stages import online_rl


def run(spec: Ppo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains a policy with PPO and returns the stage's summary."""
    spec = loading.resolve_settings(spec, inputs[spec.from_model])
    return online_rl.run(build_ppo(spec), inputs, out, context)

"""The public rewards, such as `MathAnswer` and `CodeTests`, which judge completions and give a reason each time.

Nothing is imported until it is asked for: the row types need `reward.verdict`, and the rewards need the row types.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "CodeTests": "code_tests",
    "Completion": "base",
    "Constant": "control_rewards",
    "CosineLength": "length",
    "Format": "format",
    "Instructions": "instructions",
    "KimiLength": "length",
    "LanguageShare": "language",
    "Learned": "reward_model_score",
    "MathAnswer": "math_answer",
    "PythonReward": "python_file",
    "Qwen25Math": "reward_model_score",
    "Random": "control_rewards",
    "ReasoningGym": "reasoning_gym_task",
    "Repetition": "repetition",
    "SoftOverlong": "length",
    "ToolCalls": "tool_calls",
    "Verdict": "verdict",
    "judge_all": "combine",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

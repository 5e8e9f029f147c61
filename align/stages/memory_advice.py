"""Says which one setting to turn when memory has run out in a phase of a stage, and to what value."""

from typing import Any

from qwen_align.align.context import Phase
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.memory_settings import Shortage, Turn, list_turns


def word_advice(settings: Any, runtime: Runtime, phase: Phase) -> str:
    """Says which setting to turn when a stage ran out of memory in a phase, without a full stop."""
    turn = choose_turn(settings, runtime, phase)
    if turn is None:
        return "No setting is left to change: take a smaller model or more memory"
    restart = ""
    if turn.in_key:
        restart = "; it is part of the stage's key, so the stage then starts anew"
    elif not turn.keeps_checkpoints:
        restart = "; checkpoints made without it cannot be read, so run with --force and the stage then starts anew"
    return f"Set {turn.setting}: {_format_value(turn.value)} (now {_format_value(turn.now)}){restart}"


def choose_turn(settings: Any, runtime: Runtime, phase: Phase) -> Turn | None:
    """Returns the setting to turn when a stage ran out of memory in a phase. Returns None where none is left.

    Settings that leave the result as it is come first, so that the stage can go on.
    """
    short = Shortage(phase.name, phase.rows, phase.longest_row)
    return next(list_turns(settings, runtime, short), None)


def _format_value(value: Any) -> str:
    """Formats a setting's value as YAML has it in a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_format_value(each)}" for name, each in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)

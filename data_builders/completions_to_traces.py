"""Converts correct, complete and well-formed completions with thinking to training traces."""

from qwen_align.align.rows import Completion, Trace
from qwen_align.data_builders.rollout_completions import get_verdict_value
from qwen_align.data_builders.thinking_flags import has_thinking_flag
from qwen_align.reward.thinking import split_turn


def convert_solved_completion(row: Completion, reward: str, correct_from: float) -> Trace | str:
    """Converts a correct completion to a training trace, or returns the reason why it cannot be one.

    Raises RowError if the reward did not judge the completion.
    """
    value, turn = get_verdict_value(row, reward), split_turn(row.text)
    if row.mode == "no_think":
        return "not in thinking mode"
    if row.finish_reason == "length":
        return "cut at the length limit"
    if isinstance(turn, str) or turn.thinking is None:
        return "malformed turn" if isinstance(turn, str) else "no thinking"
    if value is None or value < correct_from:
        return "no verdict" if value is None else "wrong"
    if has_thinking_flag(row.prompt):
        return "flag in the prompt's text"
    return make_trace(row, turn.thinking, turn.answer, reward)


def make_trace(row: Completion, thinking: str, answer: str, reward: str) -> Trace:
    """Makes the trace row of a completion, with the gold answer of its prompt and the reward's name."""
    return Trace(
        id=row.id,
        messages=row.prompt,
        thinking=thinking,
        answer=answer,
        gold=row.gold,
        reward=reward,
        source=row.source,
        meta=row.meta,
    )

"""Reads the completions of a rollout stage with their verdicts, and groups them by prompt."""

from collections.abc import Callable, Iterable, Iterator

from qwen_align.align.rows import Completion, Row, RowError


def read_completions(read: Callable[[], Iterator[Row]], stage: str) -> Iterator[Completion]:
    """Yields the completions of a rollout stage. Raises RowError for a row of another kind."""
    for row in read():
        if not isinstance(row, Completion):
            raise RowError(f"stage '{stage}': row '{row.id}' is a {row.row} row; only a rollout stage's completions do")
        yield row


def group_by_prompt(rows: Iterable[Completion]) -> dict[str, list[Completion]]:
    """Groups completions by the id of their prompt. Prompts stand in the order they first come, samples by number."""
    prompts: dict[str, list[Completion]] = {}
    for row in rows:
        prompts.setdefault(row.prompt_id, []).append(row)
    return {prompt_id: sorted(group, key=lambda row: row.sample) for prompt_id, group in prompts.items()}


def get_verdict_value(row: Completion, reward: str) -> float | None:
    """Returns the value that the named reward gave a completion.

    Returns None if the verdict has none. Raises RowError if the reward did not judge the completion.
    """
    if reward not in row.verdicts:
        judged = ", ".join(row.verdicts) or "no reward"
        raise RowError(
            f"completion '{row.id}': has no verdict of '{reward}' but of {judged}; add it to the rollout's rewards"
        )
    return row.verdicts[reward].value

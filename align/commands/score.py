"""Implements `qwen-align score`, which judges a file of completions with a reward and writes the verdicts to a file."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Completion
from qwen_align.align.settings.fault_wording import describe_error
from qwen_align.data_builders.file_reader import read_source_rows
from qwen_align.reward.base import JUDGED_TOGETHER
from qwen_align.reward.settings import Reward

_KNOWN = ("prompt_id", "sample", "prompt", "mode", "finish_reason", "n_tokens", "token_ids", "meta")


class ScoreSummary(NamedTuple):
    """The summary of a scored file.

    `reasons` counts rows by reason; `mean` is over rows with a verdict, None without any.
    """

    rows: int
    n_without_verdict: int
    mean: float | None
    reasons: dict[str, int]


def score_file(
    source: Path, target: Path, reward: Reward, progress: Callable[[int], None] = lambda rows: None
) -> ScoreSummary:
    """Judges every completion of the file `source` and writes the rows with their verdicts to `target`.

    A row gets `value`, `reason` and, where there are any, `parts`.

    Rows have `completion` (or `text`) and `gold`; completions of a rollout will do. JSON Lines, a JSON list, CSV and
    Parquet are read. Raises DataError naming file and line of the first bad row, with nothing written.
    """
    reward.check_machine()
    target = target.resolve()
    if target.exists() and not target.is_file():
        raise DataError(f"{target}: is no ordinary file; name a file for the judged rows")
    if not target.parent.is_dir():
        raise DataError(f"{target.parent}: there is no such folder")
    reasons: Counter[str] = Counter()
    total, rows, n_without_verdict = 0.0, 0, 0
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for chunk in _batch_rows(_read_completions(source, reward)):
                verdicts = reward.judge_many([completion for _, completion in chunk])
                for (row, _), verdict in zip(chunk, verdicts, strict=True):
                    verdict_fields: dict[str, Any] = {"value": verdict.value, "reason": verdict.reason}
                    if verdict.parts:
                        verdict_fields["parts"] = {name: part.value for name, part in verdict.parts.items()}
                    file.write(json.dumps({**row, **verdict_fields}, ensure_ascii=False) + "\n")
                    reasons[verdict.reason] += 1
                    total, n_without_verdict = (
                        total + (verdict.value or 0.0),
                        n_without_verdict + (verdict.value is None),
                    )
                rows += len(chunk)
                progress(rows)
        if not rows:
            raise DataError(f"{source}: holds no rows")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    mean = total / (rows - n_without_verdict) if rows > n_without_verdict else None
    return ScoreSummary(rows, n_without_verdict, mean, dict(reasons.most_common()))


def _batch_rows(rows: Iterable[tuple[dict[str, Any], Completion]]) -> Iterator[list[tuple[dict[str, Any], Completion]]]:
    """Yields rows with their completions in batches that are judged together."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, JUDGED_TOGETHER)):
        yield chunk


def _read_completions(source: Path, reward: Reward) -> Iterator[tuple[dict[str, Any], Completion]]:
    """Yields each row of a file together with the completion parsed from it.

    Raises DataError for a row that is not a completion.
    """
    needs_gold = reward.judge_gold(None).value != 1.0
    for where, row in read_source_rows(source):
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row is an object with completion and gold, not {type(row).__name__}")
        yield row, _parse_completion(row, where, reward, needs_gold)


def _parse_completion(row: dict[str, Any], where: str, reward: Reward, needs_gold: bool) -> Completion:
    """Converts a row with a completion and a gold answer to a Completion.

    Raises DataError naming what is missing or wrong.
    """
    text = row.get("completion", row.get("text"))
    if not isinstance(text, str):
        found = "missing" if text is None else f"{type(text).__name__}, not a string"
        raise DataError(f"{where}: 'completion' is {found}; a row has completion (or text) and gold")
    if needs_gold and row.get("gold") is None:
        raise DataError(f"{where}: 'gold' is missing; {reward.kind} judges against it")
    if reward.needs_tokens and "n_tokens" not in row:
        raise DataError(f"{where}: 'n_tokens' is missing; {reward.kind} needs the length in tokens")
    if reward.needs_outcome:
        raise DataError(f"{reward.kind} depends on whether a completion is right: judge with it in a rollout stage")
    known = {key: row[key] for key in _KNOWN if row.get(key) is not None}
    given = {"prompt_id": where, "sample": 0, "prompt": [], "finish_reason": "stop", "n_tokens": 0, **known}
    try:
        return Completion.model_validate({**given, "text": text, "gold": row.get("gold")})
    except ValidationError as error:
        raise DataError(f"{where}: {describe_error(error)}") from None

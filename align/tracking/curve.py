"""What is tracked of a stage: the figures of its metrics.jsonl, or of its evaluation."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Curve(NamedTuple):
    """A stage as trackers see it: one run of theirs. `config` holds the stage's settings."""

    name: str
    kind: str
    folder: Path
    config: dict[str, Any]


class Point(NamedTuple):
    step: int
    figures: dict[str, float]


class Run(NamedTuple):
    """A curve as one tracker knows it; `last_step` is the last one it has, None when it has none."""

    id: str
    name: str
    kind: str
    project: str
    group: str
    config: dict[str, Any]
    last_step: int | None


class Lines:
    """The JSON objects of a growing file, each once; a file that was replaced or cut is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0

    def new(self) -> list[dict[str, Any]]:
        """What was added since the last call; half a line waits until it is whole, what is no object is left out."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            now = os.fstat(file.fileno())
            if now.st_ino != self._inode or now.st_size < self._offset:
                self._inode, self._offset = now.st_ino, 0
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [found for line in whole.splitlines() if isinstance(found := _read(line), dict)]


def _read(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def point(logged: Mapping[str, Any]) -> Point | None:
    """A line of metrics.jsonl as finite numbers at a step; None without a step."""
    step = logged.get("step")
    if not isinstance(step, int):
        return None
    return Point(step, _finite({name: value for name, value in logged.items() if name != "step"}))


def evaluation(summary: Mapping[str, Any]) -> Point:
    """An evaluation's figures as one point at step 0, named `set/switch/accuracy`, with the mode where one is given."""
    figures: dict[str, float] = {}
    for result in summary["results"]:
        asked = [result["set"], result["switch"], *([result["mode"]] if result["mode"] else [])]
        figures |= {"/".join([*asked, name]): value for name, value in _finite(result).items()}
    return Point(0, figures)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}

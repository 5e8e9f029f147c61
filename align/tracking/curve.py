"""Reads the points that are tracked of a stage: the figures of its metrics.jsonl or of its evaluation."""

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
    """The figures of one step."""

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


class JsonLinesReader:
    """Reads the JSON objects of a growing file, each once; a file that was replaced or cut is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0

    def read_new(self) -> list[dict[str, Any]]:
        """Returns the objects added since the last call; half a line waits for its end, other values are left out."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, 0
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [value for line in complete.splitlines() if isinstance(value := _parse_json(line), dict)]


def _parse_json(line: bytes) -> Any:
    """Parses a line; returns None for one that is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def to_point(logged: Mapping[str, Any]) -> Point | None:
    """Converts a line of metrics.jsonl to finite numbers at a step; returns None without a step."""
    step = logged.get("step")
    if not isinstance(step, int):
        return None
    return Point(step, _keep_finite({name: value for name, value in logged.items() if name != "step"}))


def to_evaluation_point(summary: Mapping[str, Any]) -> Point:
    """Converts an evaluation's results to one point at step 0 with names like `set/switch/accuracy`, or with a mode."""
    figures: dict[str, float] = {}
    for result in summary["results"]:
        name_parts = [result["set"], result["switch"], *([result["mode"]] if result["mode"] else [])]
        figures |= {"/".join([*name_parts, name]): value for name, value in _keep_finite(result).items()}
    return Point(0, figures)


def _keep_finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values that are finite numbers, as floats."""
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}

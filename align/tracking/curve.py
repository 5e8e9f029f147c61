"""Reads the points that a stage sends to trackers: the metrics in its metrics.jsonl or of its evaluation."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Curve(NamedTuple):
    """A stage's training curve as one tracker run. `config` holds the stage's settings."""

    name: str
    kind: str
    folder: Path
    config: dict[str, Any]


class Point(NamedTuple):
    """The metrics of one training step."""

    step: int
    figures: dict[str, float]


class Run(NamedTuple):
    """A training curve as one tracker knows it. `last_step` is the last step it has, None when it has none."""

    id: str
    name: str
    kind: str
    project: str
    group: str
    config: dict[str, Any]
    last_step: int | None


class JsonLinesReader:
    """A reader of the new JSON objects in a growing file. A file that was replaced or cut is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0

    def read_new(self) -> list[dict[str, Any]]:
        """Returns the JSON objects appended to the file since the last call.

        Half a line waits for its end; values that are no objects are left out.
        """
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
    """Parses one line as JSON. Returns None for a line that is not JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def to_point(logged: Mapping[str, Any]) -> Point | None:
    """Converts a line of metrics.jsonl to its step and finite numbers. Returns None for a line without a step."""
    step = logged.get("step")
    if not isinstance(step, int):
        return None
    return Point(step, _select_finite({name: value for name, value in logged.items() if name != "step"}))


def to_evaluation_point(summary: Mapping[str, Any]) -> Point:
    """Converts an evaluation's results to one tracker point at step 0 with metric names like `set/switch/accuracy`.

    Where there is a mode, the name holds it too.
    """
    figures: dict[str, float] = {}
    for result in summary["results"]:
        name_parts = [result["set"], result["switch"], *([result["mode"]] if result["mode"] else [])]
        figures |= {"/".join([*name_parts, name]): value for name, value in _select_finite(result).items()}
    return Point(0, figures)


def _select_finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns those values of a mapping that are finite numbers, as floats."""
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}

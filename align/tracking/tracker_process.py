"""A tracker's process (`python -m qwen_align.align.tracking.tracker_process FOLDER`) sends on what stages write.

FOLDER/job.json says which tracker, FOLDER/orders.jsonl grows while the run goes on, FOLDER/said.json is its word to
people. Nobody waits for it and it asks for nothing; when its input ends, which is when the run does, it finishes.
"""

import importlib
import json
import os
import select
import signal
import sys
import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from qwen_align.align.context import TRACKING
from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.tracking.curve import Curve, JsonLinesReader, Point, Run, to_point

POLL_S = 0.5
ALONE_S = 120  # how long it lives on when the run is gone; a run that ends in order waits less and then ends it
TRACKERS = {
    "tensorboard": "to_tensorboard:TensorBoard",
    "wandb": "to_wandb:Wandb",
    "trackio": "to_trackio:Trackio",
}


class Tracker(Protocol):
    """One run at a time: `begin`, `log` with rising steps, `end`. Any of them may raise whatever it likes, or hang.

    `begin` returns what people should know, if anything.
    """

    def begin(self, run: Run) -> str | None: ...
    def log(self, step: int, figures: Mapping[str, float]) -> None: ...
    def end(self, *, is_whole: bool) -> None: ...


class Destination(NamedTuple):
    """Under what a tracker files its runs."""

    tracker: str
    project: str
    group: str


def main(folder: Path) -> int:
    """Serves one tracker to the end of the run; whatever goes wrong is said in said.json, and the code is 1."""
    os.nice(10)  # training first
    job = read_json(folder / "job.json")

    def say(message: str, *, is_last: bool = False) -> None:
        write_json(folder / "said.json", {"message": message, "is_last": is_last})

    try:
        tracker = make_tracker(job["where"]["tracker"], Tracking.model_validate(job["tracking"]), Path(job["folder"]))
        serve_orders(tracker, Destination(**job["where"]), folder / "orders.jsonl", wait_for_run_end, say)
    except Exception as error:  # noqa: BLE001 - the boundary to trackers' code, which may raise anything
        traceback.print_exc()
        said = str(error).strip().splitlines()
        say(": ".join([type(error).__name__, *said[:1]]), is_last=True)
        return 1
    return 0


def make_tracker(name: str, tracking: Tracking, folder: Path) -> Tracker:
    """The tracker of that name; imports its library."""
    module, _, cls = TRACKERS[name].partition(":")
    tracker: Tracker = getattr(importlib.import_module(f"qwen_align.align.tracking.{module}"), cls)(tracking, folder)
    return tracker


def wait_for_run_end() -> bool:
    """Whether the run's end of our input is closed; waits up to POLL_S to see."""
    is_over = bool(select.select([sys.stdin], [], [], POLL_S)[0])  # nothing is ever written to it
    if is_over:
        signal.alarm(ALONE_S)
    return is_over


def serve_orders(
    tracker: Tracker, where: Destination, orders: Path, is_over: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Follows the orders until the run is over, and sends every point of the stage that runs once."""
    told, sending = JsonLinesReader(orders), None
    while True:
        is_last = is_over()  # asked first: what was written before the end is still read
        for order in told.new():
            if "begin" in order:
                curve = Curve(**{**order["begin"], "folder": Path(order["begin"]["folder"])})
                sending = CurveSender(tracker, where, curve, say)
            elif sending:
                sending.send_new_points()
                sending.send([Point(*found) for found in order["end"]["points"]])
                tracker.end(is_whole=order["end"]["is_whole"])
                sending = None
        if sending:
            sending.send_new_points()
        if is_last:
            break
    if sending:
        tracker.end(is_whole=False)


class CurveSender:
    """A stage's points on their way; how far they are stands in the stage's folder, so that a resumed one goes on.

    It is written before a point is handed over: what is killed in between loses a point, and none is there twice.
    """

    def __init__(self, tracker: Tracker, where: Destination, curve: Curve, say: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._metrics = JsonLinesReader(curve.folder / "metrics.jsonl")
        self._mark = curve.folder / TRACKING / f"{where.tracker}.json"
        filed = {**where._asdict(), "name": curve.name}
        known = _known(self._mark)
        if known is None or any(known.get(field) != value for field, value in filed.items()):
            known = {**filed, "id": uuid.uuid4().hex[:16], "step": None}
        self._known: dict[str, Any] = known
        self._write()
        run = Run(known["id"], curve.name, curve.kind, where.project, where.group, curve.config, known["step"])
        if said := tracker.begin(run):
            say(said)

    def send_new_points(self) -> None:
        """Sends what the stage has logged since the last look."""
        self.send([found for line in self._metrics.new() if (found := to_point(line))])

    def send(self, points: list[Point]) -> None:
        """Sends the points beyond the last one sent; a resumed stage logs some steps a second time."""
        last = self._known["step"]
        fresh: list[Point] = []
        for found in points:
            if last is None or found.step > last:
                fresh.append(found)
                last = found.step
        if fresh:
            self._known["step"] = last
            self._write()
            for step, figures in fresh:
                self._tracker.log(step, figures)

    def _write(self) -> None:
        self._mark.parent.mkdir(exist_ok=True)
        write_json(self._mark, self._known)


def _known(mark: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or half of one: a new run
        return None
    return found if isinstance(found, dict) else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

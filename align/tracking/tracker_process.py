"""Runs the process of one tracker, which sends the tracker what stages log.

The command is `python -m qwen_align.align.tracking.tracker_process FOLDER`.

FOLDER/job.json says which tracker, FOLDER/orders.jsonl grows while the run goes on, FOLDER/said.json is its message to
people. Nobody waits for it and it asks for nothing; when its input ends, which is when the run does, it finishes.
"""

import json
import os
import select
import signal
import sys
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.context import TRACKING
from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.tracking.curve import Curve, JsonLinesReader, Point, Run, to_point
from qwen_align.align.tracking.trackers import Tracker, load_tracker_class

POLL_S = 0.5
ALONE_S = 120  # how long it lives on when the run is gone; a run that ends in order waits less and then ends it


class Destination(NamedTuple):
    """The project and group under which a tracker files its runs."""

    tracker: str
    project: str
    group: str


def main(folder: Path) -> int:
    """Serves one tracker until the run ends and returns the exit code.

    An error is written to said.json, and the code is 1.
    """
    os.nice(10)  # training first
    job = read_json(folder / "job.json")

    def write_message(message: str, *, is_last: bool = False) -> None:
        write_json(folder / "said.json", {"message": message, "is_last": is_last})

    try:
        tracker = load_tracker_class(job["where"]["tracker"])(
            Tracking.model_validate(job["tracking"]), Path(job["folder"])
        )
        serve_orders(tracker, Destination(**job["where"]), folder / "orders.jsonl", wait_for_run_end, write_message)
    except Exception as error:  # noqa: BLE001 - the boundary to trackers' code, which may raise anything
        traceback.print_exc()
        error_lines = str(error).strip().splitlines()
        write_message(": ".join([type(error).__name__, *error_lines[:1]]), is_last=True)
        return 1
    return 0


def wait_for_run_end() -> bool:
    """Waits up to POLL_S seconds for the run to end and returns whether it has.

    The run ends by closing this process's input.
    """
    is_over = bool(select.select([sys.stdin], [], [], POLL_S)[0])  # nothing is ever written to it
    if is_over:
        signal.alarm(ALONE_S)
    return is_over


def serve_orders(
    tracker: Tracker,
    destination: Destination,
    orders: Path,
    is_over: Callable[[], bool],
    write_message: Callable[[str], None],
) -> None:
    """Executes the orders of the run until it is over. Each point of the running stage is sent to the tracker once."""
    order_reader, sender = JsonLinesReader(orders), None
    while True:
        is_last = is_over()  # asked first: what was written before the end is still read
        for order in order_reader.read_new():
            if "begin" in order:
                curve = Curve(**{**order["begin"], "folder": Path(order["begin"]["folder"])})
                sender = CurveSender(tracker, destination, curve, write_message)
            elif sender:
                sender.send_new_points()
                sender.send_points([Point(*point) for point in order["end"]["points"]])
                tracker.end(is_whole=order["end"]["is_whole"])
                sender = None
        if sender:
            sender.send_new_points()
        if is_last:
            break
    if sender:
        tracker.end(is_whole=False)


class CurveSender:
    """A sender of a stage's points to a tracker.

    The last step sent is stored in the stage's folder, so that a resumed stage goes on from it.

    It is written before a point is handed over: what is killed in between loses a point, and none is there twice.
    """

    def __init__(
        self, tracker: Tracker, destination: Destination, curve: Curve, write_message: Callable[[str], None]
    ) -> None:
        self._tracker = tracker
        self._metrics = JsonLinesReader(curve.folder / "metrics.jsonl")
        self._mark = curve.folder / TRACKING / f"{destination.tracker}.json"
        identity = {**destination._asdict(), "name": curve.name}
        known = _read_last_sent(self._mark)
        if known is None or any(known.get(field) != value for field, value in identity.items()):
            known = {**identity, "id": uuid.uuid4().hex[:16], "step": None}
        self._known: dict[str, Any] = known
        self._save_last_sent()
        run = Run(
            known["id"], curve.name, curve.kind, destination.project, destination.group, curve.config, known["step"]
        )
        if message := tracker.begin(run):
            write_message(message)

    def send_new_points(self) -> None:
        """Sends the points that the stage has logged since the last call to the tracker."""
        self.send_points([point for line in self._metrics.read_new() if (point := to_point(line))])

    def send_points(self, points: list[Point]) -> None:
        """Sends those points to the tracker that are after the last step sent.

        A resumed stage logs some steps a second time.
        """
        last = self._known["step"]
        new_points: list[Point] = []
        for point in points:
            if last is None or point.step > last:
                new_points.append(point)
                last = point.step
        if new_points:
            self._known["step"] = last
            self._save_last_sent()
            for step, figures in new_points:
                self._tracker.log(step, figures)

    def _save_last_sent(self) -> None:
        """Writes the id of the tracker run and the last step sent to the stage's folder."""
        self._mark.parent.mkdir(exist_ok=True)
        write_json(self._mark, self._known)


def _read_last_sent(mark: Path) -> dict[str, Any] | None:
    """Reads the id of a tracker run and the last step sent from a file. Returns None where there is none to resume."""
    try:
        identity = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or half of one: a new run
        return None
    return identity if isinstance(identity, dict) else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""What a run looks like in the terminal: a line a stage, and a bar for the one that runs."""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from qwen_align.align.context import NOTES, PROGRESS
from qwen_align.align.pipeline.plan import Plan, Planned, other_versions
from qwen_align.align.reporting.summary_line import summary_line


class Progress:
    """Listens to a run. Without a terminal it prints a line a stage and no bars."""

    def __init__(self, console: Console, planned: Plan) -> None:
        self._console = console
        self._total = len(planned.stages)
        self._width = max(len(one.stage.name) for one in planned.stages)
        self._number = 0
        self._notes_said: set[str] = set()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[says]}"),
            console=console,
            transient=True,
            auto_refresh=False,  # no thread beside ours
        )
        self._task = self._bar.add_task("", total=None, says="", visible=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def skipped(self, planned: Planned) -> None:
        self._number += 1
        changed = other_versions(planned)
        self._line(planned, "stored", f"note: made with other versions: {', '.join(changed)}" if changed else "")

    def started(self, planned: Planned) -> None:
        self._number += 1
        self._notes_said.clear()
        self._bar.reset(self._task, description=self._title(planned), total=None, says="starting", visible=True)
        if not self._console.is_terminal:
            self._line(planned, "started", "")

    def going(self, planned: Planned) -> None:
        self._notes(planned)
        path = planned.folder.path / PROGRESS
        if self._console.is_terminal and path.exists():
            with contextlib.suppress(FileNotFoundError):  # the stage finished between the two calls
                said = json.loads(path.read_text())
                total = said["total"] or None
                self._bar.update(self._task, completed=said["done"], total=total, says=says(said))
        self._bar.refresh()

    def _notes(self, planned: Planned) -> None:
        """Prints what the stage has said to people since the last look; a line that is still being written waits."""
        path = planned.folder.path / NOTES
        if not path.exists():
            return
        *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines:
            if line in self._notes_said:  # by its text: a stage that goes on forgets what was said after its checkpoint
                continue
            self._notes_said.add(line)
            note = json.loads(line)
            at = f"step {note['step']}: " if note["step"] else ""
            self._console.print(Text(f"  {planned.stage.name}: {at}{note['what']}: {note['message']}"), soft_wrap=True)

    def finished(self, planned: Planned) -> None:
        self._notes(planned)
        self._bar.update(self._task, visible=False)
        manifest = planned.folder.read_manifest()
        self._line(planned, f"{manifest['seconds']:7.1f} s", summary_line(manifest["summary"]))

    def noted(self, message: str) -> None:
        self._console.print(Text(f"  {message}"), soft_wrap=True)

    def _line(self, planned: Planned, state: str, says: str) -> None:
        text = Text(f"{self._title(planned)}  {state:>9}  {says}", overflow="ellipsis", no_wrap=True)
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def _title(self, planned: Planned) -> str:
        place = f"{self._number:>{len(str(self._total))}}/{self._total}"
        return f"{place}  {planned.stage.name:<{self._width}}  {planned.stage.kind:<10}"


def says(progress: dict[str, float]) -> str:
    """`12/60 steps  3,400 tok/s  ETA 1:20`; speeds are of what this process did, not of what it resumed from."""
    done, total, seconds = progress["done"], progress["total"], progress["seconds"]
    parts = [f"{done:,}/{total:,} {progress['unit']}" if total else f"{done:,} {progress['unit']}"]
    if progress["tokens_here"] and seconds > 0:
        parts.append(f"{progress['tokens_here'] / seconds:,.0f} tok/s")
    if total and progress["done_here"]:
        left = int(seconds / progress["done_here"] * (total - done))
        parts.append(f"ETA {left // 60}:{left % 60:02d}")
    return "  ".join(parts)


class StopRequest:
    """Says when called whether a signal has asked the run to stop; `signals` has the numbers of those that came."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __call__(self) -> bool:
        return bool(self.signals)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a request to stop; a second SIGINT kills as usual.

    Outside the main thread Python lets nobody handle signals: they then keep their handlers, and nothing is asked.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: object) -> None:
        stop.signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

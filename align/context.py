"""What a running stage is given besides its settings, and how it tells how far it is."""

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_align.align.errors import Preempted
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.store.files import write_text

PROGRESS = "progress.json"
NOTES = "notes.jsonl"
TRACKING = "tracking"  # a folder: how far each tracker has got


@dataclass
class Context:
    """`stopping()` turns true when the stage was asked to stop: it then saves what it has and raises Preempted."""

    out: Path
    seed: int
    runtime: Runtime
    is_main: bool = True
    _asked: bool = field(default=False, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)
    _shown: float = field(default=0.0, init=False)
    _first: tuple[int, int] | None = field(default=None, init=False)  # done and tokens when this process began

    def progress(self, done: int, total: int, tokens: int = 0, unit: str = "steps") -> None:
        """Says how far the stage is; at most three times a second, from the main process."""
        now = time.monotonic()
        if not self.is_main or (now - self._shown < 0.3 and done < total):
            return
        self._shown = now
        self._first = self._first or (done, tokens)
        state = {
            "done": done,
            "total": total,
            "unit": unit,
            "seconds": now - self._started,
            "done_here": done - self._first[0],
            "tokens_here": tokens - self._first[1],
        }
        partial = self.out / f".{PROGRESS}"
        partial.write_text(json.dumps(state))
        partial.replace(self.out / PROGRESS)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Appends one object to metrics.jsonl."""
        if self.is_main:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics, sort_keys=True) + "\n")

    def keep_sample(self, step: int, sample: Mapping[str, Any]) -> None:
        """Appends what people read of `step` to samples.jsonl."""
        if self.is_main:
            with (self.out / "samples.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **sample}, ensure_ascii=False, sort_keys=True) + "\n")

    def note(self, step: int, what: str, message: str) -> None:
        """Appends a word to people to notes.jsonl; whoever watches the run shows it at once."""
        if self.is_main:
            with (self.out / NOTES).open("a", encoding="utf-8") as file:
                said = {"step": step, "what": what, "message": message}
                file.write(json.dumps(said, ensure_ascii=False, sort_keys=True) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops what was logged of steps beyond `step`, which a resumed stage will log again."""
        for name in ("metrics.jsonl", "samples.jsonl", NOTES):
            path = self.out / name
            if self.is_main and path.exists():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
                kept = [line for line in lines if step and (said := _step_of(line)) is not None and said <= step]
                write_text(path, "".join(kept))

    def listen_for_stop(self) -> None:
        """From now on SIGTERM and SIGINT ask the stage to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: Any) -> None:
        self._asked = True

    def stopping(self) -> bool:
        return self._asked

    def stop_if_asked(self) -> None:
        """Raises Preempted at a place where everything done so far is on disk."""
        if self._asked:
            raise Preempted("stopped as asked; run again to go on")


def _step_of(line: str) -> int | None:
    """The step of a logged line; None for half a line, which a kill or a full disk has left."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None

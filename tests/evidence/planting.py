"""A copy of the tree in which faults are planted, imported as `qwen_align` in place of the tree itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import NamedTuple

from qwen_align.align.pipeline.warm_server import NO_THREADS

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a command ended; a code of None: it ran into the time limit."""

    code: int | None
    said: str


class Copy:
    """The files of the tree that git does not ignore, in a folder called `qwen_align`, first on the import path."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "qwen_align"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.root / name)
        # One thread: on models this small several only wait for each other.
        self._environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self._started: subprocess.Popen[str] | None = None
        found = self.python("-c", "import qwen_align; print(qwen_align.__file__)", limit_s=60).said.strip()
        if Path(found).resolve() != (self.root / "__init__.py").resolve():
            raise RuntimeError(f"the copy in {self.root} is not what is imported, but {found}")

    def write(self, file: str, text: str) -> None:
        """Writes a new file."""
        self._write(self.root / file, text.lstrip("\n"))

    def insert(self, file: str, before: str, text: str) -> None:
        """Puts text before another one, which has to stand in the file once; raises ValueError otherwise."""
        source = (self.root / file).read_text(encoding="utf-8")
        if source.count(before) != 1:
            raise ValueError(f"{file}: the text stands there {source.count(before)} times, not once: {before!r}")
        self._write(self.root / file, source.replace(before, text.lstrip("\n") + before))

    @contextmanager
    def planted(self, file: str, old: str, new: str) -> Iterator[None]:
        """Inside, the file has `new` in the place of `old`; raises ValueError unless that stands there once."""
        path = self.root / file
        sound = path.read_text(encoding="utf-8")
        if sound.count(old) != 1:
            raise ValueError(f"{file}: the text to change stands there {sound.count(old)} times, not once: {old!r}")
        try:
            self._write(path, sound.replace(old, new))
            yield
        finally:
            self._write(path, sound)

    def python(self, *arguments: str, limit_s: float) -> Ended:
        """What Python says of these arguments in the copy."""
        line = [sys.executable, *arguments]
        with subprocess.Popen(
            line,
            cwd=self.root,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that what it started ends with it
        ) as process:
            try:
                said, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return Ended(None, process.communicate()[0])
            return Ended(process.returncode, said)

    def tests(self, tests: Sequence[str], *, limit_s: float, stop: bool = True) -> Ended:
        """What pytest says of those that are not slow, up to the first that fails if it is to `stop` there."""
        log = self.root.parent / "log.txt"
        first = ["-x"] if stop else []
        tier = ["-m", "not slow and not engine and not evidence", "--hypothesis-profile", "fast"]  # as `make fast` does
        arguments = ["-q", *first, *tier, "-p", "no:cacheprovider", *tests]
        process = self._forks()
        assert process.stdin
        assert process.stdout
        print(json.dumps({"arguments": arguments, "log": str(log)}), file=process.stdin, flush=True)
        child = int(process.stdout.readline())
        late = Timer(limit_s, os.killpg, (child, signal.SIGKILL))
        late.start()
        code = int(process.stdout.readline())
        late.cancel()
        return Ended(None if code == -signal.SIGKILL else code, log.read_text(encoding="utf-8", errors="replace"))

    def _forks(self) -> "subprocess.Popen[str]":
        if self._started is None:
            line = [sys.executable, str(Path(__file__).with_name("forks.py"))]
            self._started = subprocess.Popen(
                line,
                cwd=self.root,
                env={**self._environment, **NO_THREADS},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._started

    def end(self) -> None:
        """Ends the process that runs tests."""
        if self._started is not None:
            self._started.communicate()

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):  # they go by size and whole seconds
            compiled.unlink()

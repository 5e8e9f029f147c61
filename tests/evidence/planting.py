"""A copy of the tree in which faults are planted, imported as `qwen_align` in place of the tree itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
        self._environment = {**os.environ, "PYTHONPATH": str(folder)}
        found = self.python("-c", "import qwen_align; print(qwen_align.__file__)", limit_s=60).said.strip()
        if Path(found).resolve() != (self.root / "__init__.py").resolve():
            raise RuntimeError(f"the copy in {self.root} is not what is imported, but {found}")

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
                os.killpg(process.pid, 9)
                return Ended(None, process.communicate()[0])
            return Ended(process.returncode, said)

    def tests(self, tests: Sequence[str], *, limit_s: float, stop: bool = True) -> Ended:
        """What pytest says of these tests, up to the first that fails if it is to `stop` there."""
        first = ["-x"] if stop else []
        return self.python("-m", "pytest", "-q", *first, "-p", "no:cacheprovider", *tests, limit_s=limit_s)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):  # they go by size and whole seconds
            compiled.unlink()

"""Plants the faults of faults.yaml one after another, and counts those that a test, `check` or a run's error catches.

    python tests/evidence/faults.py [PART OF A NAME ...]

Ends with 1 when fewer than nine in ten are caught, with 2 when what should catch them fails on sound code too.
"""

import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from broken_inputs import INPUTS
from planting import Copy, Ended

LIST = Path(__file__).with_name("faults.yaml")
WANTED = 0.9  # 36 of 40
LIMIT_S = 600  # for what should catch one fault; the slowest takes a minute
SOUND = {"sound_sft": "run", "sound_grpo": "run", "sound_lora_then_dpo": "run"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is planted and what should catch it; faults.yaml says how to read it."""

    name: str
    file: str | None = None
    old: str = ""
    new: str = ""
    input: str | None = None
    caught_by: str | list[str] = ()  # type: ignore[assignment]
    command: str | None = None
    message: str = ""
    first_uncaught: bool = False

    @property
    def tests(self) -> list[str]:
        return [self.caught_by] if isinstance(self.caught_by, str) else list(self.caught_by)


class UnsoundError(Exception):
    """What should catch faults complains where there is none, or a patch does not even load."""


def read_list() -> list[Fault]:
    return [Fault(**one) for one in yaml.safe_load(LIST.read_text(encoding="utf-8"))]


def check_sound(copy: Copy, faults: list[Fault], folder: Path) -> None:
    """Raises UnsoundError unless all tests of the list pass and all sound inputs run on the copy as it is."""
    tests = sorted({test for fault in faults for test in fault.tests})
    files = {test for test in tests if "::" not in test}
    tests = [test for test in tests if test in files or test.partition("::")[0] not in files]
    if tests and (ended := copy.tests(tests, limit_s=4 * LIMIT_S, stop=False)).code != 0:
        raise UnsoundError(ended.said[-3000:])
    if any(fault.input for fault in faults):
        for name, command in SOUND.items():
            ended = run_input(copy, name, command, folder / "sound")
            if ended.code != 0:
                raise UnsoundError(f"{name}: {ended.said[-3000:]}")


def run_input(copy: Copy, name: str, command: str, folder: Path) -> Ended:
    place = folder / name
    place.mkdir(parents=True)
    recipe = INPUTS[name](place)
    return copy.python("-m", "qwen_align.cli", command, str(recipe), "--home", str(place / "home"), limit_s=LIMIT_S)


def caught(copy: Copy, fault: Fault, folder: Path) -> str | None:
    """What caught the fault, the first failing test or the error's message; None if nothing did."""
    if fault.file is None:
        return _caught(copy, fault, folder)
    with copy.planted(fault.file, fault.old, fault.new):
        loads = copy.python("-m", "py_compile", fault.file, limit_s=LIMIT_S)
        if loads.code != 0:
            raise UnsoundError(f"'{fault.name}': the patch is no Python: {loads.said[-1000:]}")
        return _caught(copy, fault, folder)


def _caught(copy: Copy, fault: Fault, folder: Path) -> str | None:
    if fault.command is not None:
        assert fault.input is not None
        ended = run_input(copy, fault.input, fault.command, folder)
        found = re.search(fault.message, " ".join(ended.said.split()))
        return f"{fault.command}: {found.group()}" if ended.code and found else None
    ended = copy.tests(fault.tests, limit_s=LIMIT_S)
    failed = re.search(r"^FAILED (\S.*?)(?: - |$)", ended.said, re.MULTILINE)
    if ended.code not in (0, 1, None) or (ended.code == 1 and failed is None):
        raise UnsoundError(f"'{fault.name}': the tests did not run: {ended.said[-2000:]}")
    return failed.group(1) if failed else None


def main(parts: list[str]) -> int:
    faults = [one for one in read_list() if not parts or any(part in one.name for part in parts)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        copy = Copy(folder / "tree")
        try:
            check_sound(copy, faults, folder)
            print(f"sound code and inputs pass ({time.monotonic() - started:.0f} s)", flush=True)
            found = {}
            for number, fault in enumerate(faults):
                by = found[fault.name] = caught(copy, fault, folder / "planted" / str(number))
                later = " (uncaught at first)" if fault.first_uncaught else ""
                print(f"{'caught' if by else 'MISSED'}  {fault.name}{later}: {by or 'by nothing'}", flush=True)
        except UnsoundError as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            copy.end()
    n_caught = sum(by is not None for by in found.values())
    by_message = sum(fault.command is not None and found[fault.name] is not None for fault in faults)
    first = sum(fault.first_uncaught for fault in faults)
    print(
        f"{n_caught} of {len(faults)} faults caught, {n_caught - by_message} by tests and {by_message} by an error; "
        f"{first} were not when the list was made; {time.monotonic() - started:.0f} s"
    )
    return 0 if n_caught >= WANTED * len(faults) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

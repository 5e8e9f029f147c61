"""Prints to a terminal or pipe that may close or know no Unicode, and keeps the tracebacks of unexpected errors."""

import contextlib
import io
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console


class OutputConsole(Console):
    """A console on standard output. Brackets are printed as they are: a path may hold them.

    `goes_on`: the command goes on without output once nobody reads it, as a run does. Otherwise BrokenPipeError is
    raised, which ends the command.
    """

    def __init__(self, *, goes_on: bool = False) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)
        self._goes_on = goes_on

    def on_broken_pipe(self) -> None:
        """Drops all further output, and says so on standard error if the command goes on."""
        self.quiet = True
        drop_output()
        if not self._goes_on:
            raise BrokenPipeError
        print_error("nobody reads the output any more; the run goes on without it")


def prepare_streams() -> None:
    """Makes standard input read every byte, and replaces output streams that the caller has closed."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for as long as we run


@contextlib.contextmanager
def end_on_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end a command as Ctrl-C does, so that it clears away what it has half written.

    The exit code is 128 and the signal's number. A signal that is ignored stays ignored, as under nohup. Outside the
    main thread Python lets nobody handle signals.
    """

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers if is_main else ():
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers if is_main else ():
            signal.signal(number, signal.SIG_DFL)


def drop_output() -> None:
    """Redirects standard output to nowhere, so that nothing fails when Python flushes it at the end."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def print_error(message: str) -> None:
    """Prints a message to standard error, under the program's name. Does nothing once nobody reads it."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    with contextlib.suppress(OSError, SystemExit):  # rich exits at a broken pipe
        console.print(f"qwen-align: {message}")


def describe_unexpected_error(error: BaseException) -> str:
    """Returns one line about an error that no code expected, after writing its traceback to a file that it names."""
    first_line = (str(error).strip().splitlines() or [""])[0][:200]
    try:
        number, name = tempfile.mkstemp(prefix="qwen-align-error-", suffix=".txt")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError as failure:
        where = f"no file could be written for the traceback: {failure.strerror}"
    else:
        where = f"a fault of qwen-align or a file that nobody expected; the traceback is in {name}"
    return f"{type(error).__name__}: {first_line}; {where}"

"""Whether the Python files that a recipe names may be run, which `qwen-align check --no-code` leaves out."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_RUNS = ContextVar("user_code_runs", default=True)


class UserCodeLeftOut(Exception):
    """The error for what cannot be known without running a user's file. The message says which."""


@contextlib.contextmanager
def leave_out_user_code(*, is_left_out: bool = True) -> Iterator[None]:
    """Keeps users' Python files from being run inside the `with` block."""
    token = _RUNS.set(not is_left_out)
    try:
        yield
    finally:
        _RUNS.reset(token)


def runs_user_code() -> bool:
    """Returns whether users' Python files may be run here."""
    return _RUNS.get()


def require_user_code(file: str) -> None:
    """Raises UserCodeLeftOut where a user's file must not be run."""
    if not _RUNS.get():
        raise UserCodeLeftOut(f"{file} is run, which --no-code leaves out")

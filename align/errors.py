"""Defines the errors a user can act on. By exit code: 2 recipe, 3 data, 4 a stage failed, 75 preempted (run again)."""


class AlignError(Exception):
    """An error a user can act on. The message says where, what was found and what to do."""

    exit_code = 4


class RecipeError(AlignError, ValueError):
    """The error for a mistake in the recipe or in a model it names."""

    exit_code = 2


class DataError(AlignError, ValueError):
    """The error for data that cannot be read, or of which no row is left."""

    exit_code = 3


class StageError(AlignError, RuntimeError):
    """The error for a stage that failed."""

    exit_code = 4


class OutOfMemory(StageError):
    """The error for a stage that ran out of memory and has done what it could about it.

    `kept` says what a further run goes on from.
    """

    def __init__(self, message: str, kept: str = "") -> None:
        super().__init__(message)
        self.kept = kept


class Preempted(AlignError, RuntimeError):
    """The exception for a stage that was asked to stop and has saved its state. Running again resumes it."""

    exit_code = 75


BY_EXIT_CODE: dict[int, type[AlignError]] = {2: RecipeError, 3: DataError, 4: StageError, 75: Preempted}

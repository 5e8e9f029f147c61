"""The errors a user can act on, by exit code: 2 recipe, 3 data, 4 a stage failed, 75 preempted (run again)."""


class AlignError(Exception):
    """An error a user can act on; the message says where, what was found and what to do."""

    exit_code = 4


class RecipeError(AlignError, ValueError):
    """Something is wrong with the recipe or with a model it names."""

    exit_code = 2


class DataError(AlignError, ValueError):
    """Data that cannot be read, or none left."""

    exit_code = 3


class StageError(AlignError, RuntimeError):
    """A stage failed."""

    exit_code = 4


class Preempted(AlignError, RuntimeError):
    """A stage was asked to stop and has saved what it had; running again goes on from there."""

    exit_code = 75


BY_EXIT_CODE: dict[int, type[AlignError]] = {2: RecipeError, 3: DataError, 4: StageError, 75: Preempted}

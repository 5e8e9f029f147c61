"""The `python` reward, which runs a user's own function in worker processes with a time limit."""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from importlib.util import module_from_spec, spec_from_file_location
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import PythonFile
from qwen_align.align.rows import Completion
from qwen_align.align.settings.fault_wording import describe_error
from qwen_align.reward.base import BaseReward, count_cores, judge_in_threads
from qwen_align.reward.user_code import require_user_code, runs_user_code
from qwen_align.reward.verdict import Verdict
from qwen_align.reward.worker_pool import Pool, PoolError, StartError


class PythonReward(BaseReward):
    """A reward computed by the user's own Python function `name(completion, gold)`.

    It may return a number, a bool, None for no verdict, a dict or a Verdict.

    `completion` is a `Completion` (or the bare text, where only that was judged), `gold` the row's gold; with
    `group: true` the function takes a list of the completions of one prompt and returns a list as long. A dict has
    `value` and may have `reason`. The function runs in worker processes: it may hang, use up to `memory_gib` or
    crash without harm to the run. A completion it takes too long for gets 0.0, "time limit"; where it raises or
    returns something else there is no verdict, and the reason names the line of the file. In the stage's key are the
    sha256 of the file and of the files of yours that it imports, in turn too, and name and version of the installed
    packages; not the files that it reads.
    """

    kind: Literal["python"] = "python"
    file: PythonFile = Field(
        description="your Python file; its content and that of the files it imports are part of the stage's key"
    )
    name: str = Field("judge", pattern=r"^[A-Za-z_][A-Za-z_0-9]*$", description="the function in the file")
    group: bool = Field(False, description="call the function with the list of a prompt's completions")
    shaping: bool = Field(False, description="says how the task was done, not whether; values beyond -1 to 1 are cut")
    time_limit_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="seconds for one call; a completion that takes longer is paid 0"
    )
    memory_gib: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="memory of one worker process, in GiB of address space"
    )

    @property
    def label(self) -> str:
        """Returns the name of the user's function, under which the verdicts are stored."""
        return self.name

    @property
    def is_outcome(self) -> bool:
        """Returns whether the user's function judges that the task was solved, as opposed to how."""
        return not self.shaping

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Judges one completion by the user's function, with a gold that is by default the completion's own."""
        if isinstance(completion, str):
            if self.group:
                raise TypeError(f"{self.label} judges groups: give it Completion rows, through judge_group")
            return self._ask_workers({"text": completion, "gold": gold})[0]
        row = completion if gold is None else completion.model_copy(update={"gold": gold})
        return self.judge_group([row])[0]

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        """Judges all completions of one prompt by the user's function."""
        return self._ask_workers({"rows": [completion.model_dump() for completion in group]}, len(group))

    def judge_many(self, completions: Sequence[Completion], *, deadline: float | None = None) -> list[Verdict]:
        """Judges completions of any prompts by the user's function and returns the verdicts in order."""
        if self.group:
            return super().judge_many(completions, deadline=deadline)
        return judge_in_threads(self.judge, completions, deadline)

    def try_on(
        self, completions: Sequence[Completion], group_size: int, *, deadline: float
    ) -> list[Verdict | PoolError]:
        """Judges completions of one prompt as a stage would, and returns what was raised in place of a verdict.

        `group_size`: how many completions of a prompt a function of groups gets; the last group is filled up with the
        first ones. `deadline` is a `time.monotonic()`; what runs then is ended. Raises RecipeError if the workers
        cannot start.
        """
        size = group_size if self.group else 1
        filled = [*completions, *islice(cycle(completions), -len(completions) % size)]
        groups = [filled[start : start + size] for start in range(0, len(filled), size)]

        def try_group(group: list[Completion]) -> list[Verdict | PoolError]:
            request = {"rows": [completion.model_dump() for completion in group]}
            try:
                return [*self._request_verdicts(request, deadline=deadline)]
            except PoolError as error:
                return [error] * len(group)

        self.warm_up()
        with ThreadPoolExecutor(count_cores()) as threads:
            outcomes = [outcome for judged in threads.map(try_group, groups) for outcome in judged]
        return outcomes[: len(completions)]

    def check_machine(self) -> None:
        """Imports the user's file as a check. Raises RecipeError if the import fails or the function is missing.

        Does nothing where users' code is left out.
        """
        if runs_user_code():
            self.warm_up()

    def warm_up(self) -> None:
        """Starts the worker processes, which import the user's file. Raises RecipeError if they cannot start."""
        try:
            self._get_pool().warm_up()
        except StartError as error:
            raise RecipeError(f"reward {self.file}: {error}") from error

    def _ask_workers(self, request: dict[str, Any], count: int = 1) -> list[Verdict]:
        """Sends a request to the worker processes and returns the verdicts.

        Without a reply, each verdict has only a reason.
        """
        try:
            return self._request_verdicts(request)
        except PoolError as error:
            reason = str(error)
            return [Verdict(value=0.0 if reason == "time limit" else None, reason=reason)] * count

    def _request_verdicts(self, request: dict[str, Any], *, deadline: float | None = None) -> list[Verdict]:
        """Sends a request to the worker processes and returns the verdicts. Raises PoolError if there is no reply."""
        try:
            replies = self._get_pool().ask(request, deadline=deadline)
        except StartError as error:
            raise RecipeError(f"reward {self.file}: {error}") from error
        return [Verdict.model_validate(reply) for reply in replies]

    def _get_pool(self) -> Pool:
        """Returns the worker pool for these reward settings. Raises UserCodeLeftOut where no user's code may run."""
        require_user_code(self.file)
        return _make_pool(self.file, self._written_at, self.name, self.group, self.time_limit_s, self.memory_gib)

    @cached_property
    def _written_at(self) -> int | None:
        """Returns when the file was last written, at the first use of these settings: a stage keeps to its file."""
        path = Path(self.file)
        return path.stat().st_mtime_ns if path.is_file() else None


@cache
def _make_pool(
    file: str, written_at: int | None, name: str, group: bool, time_limit_s: float, memory_gib: float
) -> Pool:
    """Returns the worker pool that runs a function of a Python file. The same settings share one pool.

    `written_at`: when the file was written. A notebook that writes it anew gets a pool of the new one.
    """
    argument = {"file": str(Path(file).resolve()), "name": name, "group": group}
    entry = "qwen_align.reward.python_file:make_handler"
    return Pool(entry, argument, workers=count_cores(), limit_s=time_limit_s, memory_gib=memory_gib)


_ROWS = TypeAdapter(list[Completion])


def make_handler(argument: dict[str, Any]) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Imports the user's file in the workers' server process and returns a function that answers judging requests."""
    function = load_user_function(Path(argument["file"]), argument["name"])
    _check_signature(function, group=argument["group"])

    def judge_request(request: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs the user's function on the text or rows of a request and returns the verdicts."""
        if "text" in request:
            returned = [function(request["text"], request["gold"])]
        else:
            rows = _ROWS.validate_python(request["rows"])
            returned = list(function(rows)) if argument["group"] else [function(value, value.gold) for value in rows]
            if len(returned) != len(rows):
                raise ValueError(f"{len(returned)} values returned for {len(rows)} completions")
        return [_to_verdict(value).model_dump(exclude_none=False) for value in returned]

    return judge_request


def load_user_function(file: Path, name: str) -> Callable[..., Any]:
    """Imports a Python file and returns its function of the given name.

    Raises what the import raises, or AttributeError.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there")
    sys.path.insert(0, str(file.parent))  # its neighbours can be imported
    # A file named as a module that is used already, such as math.py, does not take that one's place.
    module_name = f"own_{file.stem}" if file.stem in {*sys.stdlib_module_names, *sys.modules} else file.stem
    spec = spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(key for key, value in vars(module).items() if callable(value) and key[0] != "_")
        raise AttributeError(f"{file} has no function '{name}'; it has: {known or 'none'}")
    return function  # type: ignore[no-any-return]


def _check_signature(function: Callable[..., Any], *, group: bool) -> None:
    """Raises TypeError if the user's reward function does not accept the arguments it will be called with."""
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__name__} is async; a reward is an ordinary function")
    if remedy := _find_trl_remedy(function, group=group):
        raise TypeError(remedy)
    try:
        inspect.signature(function).bind(*([None] if group else [None, None]))
    except TypeError as error:
        expected_arguments = "one argument, the list of completions" if group else "two arguments, completion and gold"
        raise TypeError(f"{function.__name__} has to take {expected_arguments}: {error}") from None


def _find_trl_remedy(function: Callable[..., Any], *, group: bool) -> str | None:
    """Returns what to add to a file whose reward function is of TRL's form: lists of all prompts and completions.

    Returns None for other functions. Called with one completion and its gold, some of them would go wrong unseen.
    """
    parameters = inspect.signature(function).parameters
    takes_anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "completions" not in parameters or not ("prompts" in parameters or (takes_anything and not group)):
        return None
    given = {"completions": '[[{"role": "assistant", "content": text}]]'}
    for name, parameter in parameters.items():
        is_named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if is_named and name not in given and parameter.default is parameter.empty:
            given[name] = _TRL_ARGUMENTS.get(name, "[gold]")
    name = "judge" if function.__name__ != "judge" else "judge_one"
    arguments = ", ".join(f"{key}={value}" for key, value in given.items())
    return (
        f"{function.__name__} takes lists of prompts and completions, as TRL's reward functions do; here a function "
        f"gets one completion and its gold. Add this to the file, and write `name: {name}` in the recipe"
        f"{' without `group`' if group else ''}; a function that wants plain texts gets completions=[text]:\n"
        f"    def {name}(completion, gold):\n"
        '        text = getattr(completion, "text", completion)\n'
        f"        return {function.__name__}({arguments})[0]"
    )


# What a function of TRL's form gets for its arguments; any other is a column of the data, in which the gold stands.
_TRL_ARGUMENTS = {
    "prompts": '[[turn.model_dump() for turn in getattr(completion, "prompt", [])]]',
    "completion_ids": "[[]]",
    "trainer_state": "None",
}


def _to_verdict(returned: Any) -> Verdict:
    """Converts a user function's return value to a Verdict. Raises TypeError or ValueError if it cannot be one."""
    if isinstance(returned, Verdict):
        return returned
    if returned is None:
        return Verdict(value=None, reason="no verdict")
    if isinstance(returned, dict):
        try:
            return Verdict.model_validate({"reason": "judged", **returned})
        except ValidationError as error:
            raise TypeError(f"the dict returned is no verdict: {describe_error(error)}") from None
    if isinstance(returned, list | tuple):
        raise TypeError(f"{returned!r:.60} returned for one completion; wanted: a number, None, a dict or a Verdict")
    value = float(returned)
    if not math.isfinite(value):
        raise ValueError(f"{value} is no reward")
    return Verdict(value=value, reason="judged")

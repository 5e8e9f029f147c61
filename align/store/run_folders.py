"""Keeps the folders under runs/: which run each belongs to, how that run was asked for, and when."""

import contextlib
import hashlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwen_align import __version__
from qwen_align.align.errors import Preempted, RecipeError, StageError
from qwen_align.align.store.files import read_json, write_json, write_text
from qwen_align.align.store.lease import Lease, hold_lease
from qwen_align.align.store.lease_record import VISIBILITY_S, LeaseHeld
from qwen_align.align.store.run_links import LINKS, hold_run_links
from qwen_align.align.store.stage_folder import StageFolder

RECORD = "run.json"
RESOLVED = "recipe.yaml"  # the recipe as it was run, beside its record
_LEASE = ".lease"  # in runs/, where no run has such a name


@dataclass(frozen=True)
class RunRequest:
    """What a run was asked for: a recipe file with changes to its settings.

    `recipe`: absolute path, "" for a recipe without a file. `overrides`: as given to `--set`. `digest`: of the
    recipe's settings before the overrides, `extends` and the tiny form included.
    """

    recipe: str = ""
    overrides: tuple[str, ...] = ()
    tiny: bool = False
    digest: str = ""

    @property
    def options(self) -> str:
        """Returns the options of the command line that change the recipe, "" where there are none."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        return shlex.join([*(["--tiny"] if self.tiny else []), *sets])

    def is_same_way(self, other: "RunRequest") -> bool:
        """Returns whether both are runs of one recipe file with the same changes, whatever the file says by now."""
        return (self.recipe, self.overrides, self.tiny) == (other.recipe, other.overrides, other.tiny)


@dataclass(frozen=True)
class RunRecord:
    """The record of a run in its folder: how it was asked for, where, when and how it ended.

    `started` and `ended`: ISO dates, of the last time it was run. `exit_code`: None while it runs, or after a kill.
    `message`: that of the error it ended with.
    """

    folder: Path
    request: RunRequest
    home: str
    version: str
    started: str
    ended: str | None
    exit_code: int | None
    message: str = ""

    @property
    def failure(self) -> str:
        """Returns the message of a run that failed, and an empty text for any other."""
        return self.message if self.exit_code not in (None, 0, Preempted.exit_code) else ""


def build_request(path: Path, settings: Mapping[str, Any], overrides: Sequence[str], *, tiny: bool) -> RunRequest:
    """Returns the request of a run. `settings`: those of the recipe before the overrides. `path`: of its file."""
    if not path.is_file():
        return RunRequest("", tuple(overrides), tiny)
    return RunRequest(str(path.resolve()), tuple(overrides), tiny, digest_settings(settings))


def digest_settings(settings: Mapping[str, Any]) -> str:
    """Returns the sha256 of a recipe's settings before they are checked, so that any YAML has one."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()


def find_run_folder(home: Path, name: str, request: RunRequest, folders: Mapping[str, Path]) -> Path:
    """Returns the folder of a run: runs/NAME, or runs/NAME.2 and so on where that belongs to another run.

    A run has the folder of an earlier one of the same recipe file, if the changes are the same or the stages are.
    `folders`: each stage's folder.
    """
    runs = home / "runs"
    taken = {folder: read_record(folder) for folder in list_folders(runs, name)}
    for folder, record in taken.items():
        if record and record.request.is_same_way(request):
            return folder
    wanted = {name: folder.resolve() for name, folder in folders.items()}
    for folder, record in taken.items():
        # Without a record it is of an earlier version, or a folder that nothing has been run in.
        if record is None or (record.request.recipe == request.recipe and read_links(folder) == wanted):
            return folder
    numbers = (name if number == 1 else f"{name}.{number}" for number in range(1, len(taken) + 2))
    return next(runs / free for free in numbers if runs / free not in taken)


def list_folders(runs: Path, name: str) -> list[Path]:
    """Lists the existing folders of runs with a name: NAME, then NAME.2, NAME.3 and so on."""
    numbered = [(int(path.name.rpartition(".")[2]), path) for path in runs.glob(f"{name}.[0-9]*") if _is_number(path)]
    return [path for path in (runs / name, *(path for _, path in sorted(numbered))) if path.is_dir()]


def _is_number(path: Path) -> bool:
    return path.name.rpartition(".")[2].isdecimal()


def read_links(folder: Path) -> dict[str, Path]:
    """Returns the folder that each stage of a run links to. Whether it exists does not matter."""
    return {link.name: link.resolve() for link in sorted((folder / LINKS).glob("*"))}


def read_record(folder: Path) -> RunRecord | None:
    """Reads the record of the run in a folder. Returns None where there is none that can be read."""
    try:
        raw = read_json(folder / RECORD)
        recipe = str((folder.resolve().parent.parent / raw["recipe"]).resolve()) if raw["recipe"] else ""
        request = RunRequest(recipe, tuple(raw["overrides"]), raw["tiny"], raw["digest"])
        datetime.fromisoformat(raw["started"])  # it is sorted by
        return RunRecord(
            folder,
            request,
            raw["home"],
            raw["version"],
            raw["started"],
            raw.get("ended"),
            raw.get("exit_code"),
            raw.get("message", ""),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def list_records(home: Path) -> list[RunRecord]:
    """Lists the records of all runs of a home folder, the last started first."""
    records = [record for path in home.glob(f"runs/*/{RECORD}") if (record := read_record(path.parent))]
    return sorted(records, key=lambda record: record.started, reverse=True)


def find_last_record(home: Path, recipe: Path) -> RunRecord | None:
    """Returns the record of the last run of a recipe file in a home folder. Returns None if it was never run there."""
    wanted = str(recipe.resolve())
    return next((record for record in list_records(home) if record.request.recipe == wanted), None)


@contextlib.contextmanager
def hold_runs_lease(home: Path, say: Callable[[str], None] = lambda message: None) -> Iterator[Lease]:
    """Holds the lease of runs/ inside the `with` block, so that two runs do not take one folder. Waits for it.

    `say` is told what it waits for where that takes long. Raises OSError where it cannot be written, StageError where
    another host's file stays hidden.
    """
    try:
        with hold_lease(home / "runs" / _LEASE, queue=True, say=say) as lease:
            yield lease
    except LeaseHeld as error:
        raise StageError(f"{home / 'runs' / _LEASE}: {error} has made a file there that does not get visible") from None


def write_run_folder(
    home: Path,
    name: str,
    request: RunRequest,
    folders: Mapping[str, Path],
    resolved: str,
    held: contextlib.ExitStack | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> str:
    """Writes a run's folder: its record, the resolved recipe and a link to each stage's folder.

    Until `held` is closed, another run that takes the folder over keeps these links beside its own. `say` is told of
    what it waits for.
    Returns a note for the user where another run has the folder of the recipe's name, else "". Raises StageError when
    it cannot be written.
    """
    try:
        with contextlib.ExitStack() as released, hold_runs_lease(home, say) as lease:
            folder, is_new = _make_run_folder(home, name, request, folders)
            note = _describe_neighbour(folder.with_name(name), folder) if is_new and folder.name != name else ""
            lease.check()
            _write_record(
                RunRecord(folder, request, str(home.resolve()), __version__, _format_current_time(), None, None)
            )
            write_text(folder / RESOLVED, resolved)
            (held or released).enter_context(hold_run_links(folder, folders))
            return note
    except OSError as error:
        raise StageError(f"{error.filename or home / 'runs' / name}: cannot be written: {error.strerror}") from None


def _make_run_folder(home: Path, name: str, request: RunRequest, folders: Mapping[str, Path]) -> tuple[Path, bool]:
    """Finds and makes the folder of a run. Returns it, and whether it is new.

    One that is there already though it was not seen is another host's: it is looked for again until it is.
    """
    until = time.monotonic() + VISIBILITY_S
    while True:
        folder = find_run_folder(home, name, request, folders)
        if folder.is_dir():
            return folder, False
        try:
            folder.mkdir(parents=True)
            return folder, True
        except FileExistsError:
            if folder.is_file() or time.monotonic() > until:
                raise
            time.sleep(0.2)


def _describe_neighbour(taken: Path, folder: Path) -> str:
    """Returns the note that the folder of a recipe's name belongs to another run."""
    record = read_record(taken)
    whose = f"the run of {format_request(record.request)}" if record else "another run"
    return f"{taken} is kept, as {whose}; this run is {folder}"


def describe_replaced(home: Path, folder: Path, folders: Mapping[str, Path]) -> str:
    """Returns a note that a run will no longer link to finished stages which no other run links to, else "".

    `folder`: the run's, which it takes over from an earlier run, as after an edit of the recipe.
    """
    kept = {path.resolve() for path in folders.values()}
    kept |= {link.resolve() for link in home.glob(f"runs/*/{LINKS}/*") if link.parent.parent.name != folder.name}
    replaced = [name for name, path in read_links(folder).items() if path not in kept and StageFolder(path).is_complete]
    if not replaced:
        return ""
    are = "is" if len(replaced) == 1 else "are"
    return (
        f"{folder}: the recipe has changed; {', '.join(replaced)} as made before {are} still in store/, "
        "but `qwen-align prune` would delete what no run links to"
    )


def close_record(folder: Path, exit_code: int, message: str = "") -> None:
    """Writes into the record of a run when and how it ended, with the message of the error if there was one."""
    record = read_record(folder)
    if record:
        _write_record(
            RunRecord(**{**vars(record), "ended": _format_current_time(), "exit_code": exit_code, "message": message})
        )


def _write_record(record: RunRecord) -> None:
    """Writes the record of a run into its folder.

    The recipe's path starts at the home folder if it lies there or beside it, so that both can be moved together.
    """
    values = {**vars(record), **asdict(record.request)}
    home = record.folder.resolve().parent.parent
    if record.request.recipe and Path(record.request.recipe).is_relative_to(home.parent):
        values["recipe"] = os.path.relpath(record.request.recipe, home)
    write_json(record.folder / RECORD, {name: values[name] for name in values if name not in ("folder", "request")})


def _format_current_time() -> str:
    return datetime.now(UTC).isoformat()  # of one zone and to the microsecond: the last of several is looked for


def format_time(iso: str) -> str:
    """Formats a time of a record as local date, hour and minute."""
    return f"{datetime.fromisoformat(iso).astimezone():%Y-%m-%d %H:%M}"


def format_request(request: RunRequest) -> str:
    """Formats a request as the recipe's path, from here where it lies below, and the options that change it."""
    if not request.recipe:
        return " ".join(["a recipe from Python", request.options]).rstrip()
    path = Path(request.recipe)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return " ".join([shlex.quote(str(path)), request.options]).rstrip()


def is_recipe_gone(record: RunRecord) -> bool:
    """Returns whether a run's recipe was a file that is not there any more."""
    return bool(record.request.recipe) and not Path(record.request.recipe).is_file()


def require_recipe(record: RunRecord) -> Path:
    """Returns the recipe file of a run. Raises RecipeError if there is none any more."""
    if not record.request.recipe:
        raise RecipeError(f"{record.folder}: was run from Python; its recipe is no file")
    if is_recipe_gone(record):
        raise RecipeError(f"{record.folder}: its recipe {record.request.recipe} is gone")
    return Path(record.request.recipe)

"""Keeps the folders under runs/: which run each belongs to, how that run was asked for, and when."""

import contextlib
import fcntl
import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qwen_align import __version__
from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.store.files import read_json, write_json, write_text
from qwen_align.align.store.stage_folder import StageFolder

RECORD = "run.json"
LINKS = "stages"  # what is linked here is kept by `prune`


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
    """

    folder: Path
    request: RunRequest
    home: str
    version: str
    started: str
    ended: str | None
    exit_code: int | None


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

    A run has the folder of an earlier one if it is of the same recipe file with the same changes, or if it has the
    same stages. `folders`: each stage's folder.
    """
    runs = home / "runs"
    taken = {folder: read_record(folder) for folder in list_folders(runs, name)}
    for folder, record in taken.items():
        if record and record.request.is_same_way(request):
            return folder
    wanted = {name: folder.resolve() for name, folder in folders.items()}
    for folder, record in taken.items():
        # Without a record it is of an earlier version, or a folder that nothing has been run in.
        if record is None or read_links(folder) == wanted:
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
        request = RunRequest(raw["recipe"], tuple(raw["overrides"]), raw["tiny"], raw["digest"])
        return RunRecord(
            folder, request, raw["home"], raw["version"], raw["started"], raw.get("ended"), raw.get("exit_code")
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
def hold_runs_lock(home: Path) -> Iterator[None]:
    """Holds the lock of runs/ inside the `with` block, so that two runs do not take one folder."""
    runs = home / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_run_folder(
    home: Path, name: str, request: RunRequest, folders: Mapping[str, Path], resolved: str
) -> list[str]:
    """Writes a run's folder: its record, the resolved recipe and a link to each stage's folder.

    Returns notes for the user: that another run has the folder of the recipe's name, and that stored stages are no
    longer linked. Raises StageError when it cannot be written.
    """
    try:
        with hold_runs_lock(home):
            folder = find_run_folder(home, name, request, folders)
            folder.mkdir(parents=True, exist_ok=True)
            notes = [_describe_neighbour(folder.with_name(name))] if folder.name != name else []
            _write_record(RunRecord(folder, request, str(home.resolve()), __version__, _now(), None, None))
            write_text(folder / "recipe.yaml", resolved)
            before = read_links(folder)
            links = folder / LINKS
            links.mkdir(exist_ok=True)
            for old in links.iterdir():
                old.unlink()
            for stage, path in folders.items():
                (links / stage).symlink_to(os.path.relpath(path.resolve(), links.resolve()), target_is_directory=True)
            if unlinked := _list_unlinked(home, before):
                notes.append(
                    f"{folder}: the recipe has changed; {', '.join(unlinked)} as made before "
                    f"{'is' if len(unlinked) == 1 else 'are'} still in store/, but `qwen-align prune` would delete them"
                )
            return notes
    except OSError as error:
        raise StageError(f"{error.filename or home / 'runs' / name}: cannot be written: {error.strerror}") from None


def _describe_neighbour(folder: Path) -> str:
    """Returns the note that the folder of a recipe's name belongs to another run."""
    record = read_record(folder)
    whose = f"that of {format_request(record.request)}" if record else "another run's"
    return f"{folder} is {whose}, which is kept: this run has a folder of its own"


def _list_unlinked(home: Path, before: Mapping[str, Path]) -> list[str]:
    """Lists the names of finished stages that a run linked to before and that no run links to now."""
    linked = {link.resolve() for link in home.glob(f"runs/*/{LINKS}/*")}
    return [name for name, path in before.items() if path not in linked and StageFolder(path).is_complete]


def close_record(folder: Path, exit_code: int) -> None:
    """Writes into the record of a run when and how it ended."""
    record = read_record(folder)
    if record:
        _write_record(RunRecord(**{**vars(record), "ended": _now(), "exit_code": exit_code}))


def _write_record(record: RunRecord) -> None:
    values = {**asdict(record.request), **{name: value for name, value in vars(record).items() if name != "request"}}
    write_json(record.folder / RECORD, {name: value for name, value in values.items() if name != "folder"})


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def format_request(request: RunRequest) -> str:
    """Formats a request as the recipe's path, from here where it lies below, and the options that change it."""
    if not request.recipe:
        return " ".join(["a recipe from Python", request.options]).rstrip()
    path = Path(request.recipe)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return " ".join([shlex.quote(str(path)), request.options]).rstrip()


def require_recipe(record: RunRecord) -> Path:
    """Returns the recipe file of a run. Raises RecipeError if there is none any more."""
    if not record.request.recipe:
        raise RecipeError(f"{record.folder}: was run from Python; its recipe is no file")
    path = Path(record.request.recipe)
    if not path.is_file():
        raise RecipeError(f"{record.folder}: its recipe {path} is gone; recipe.yaml beside it says what it was")
    return path

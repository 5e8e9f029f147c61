"""Finds the commit that a branch or tag of the hub stands for, once per run, so that a run's results stay the same.

The first run writes it to `runs/NAME/revisions.json`; after that it is read there, by `check` and `report` as well.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.hub_revision import COMMIT, WHERE_COMMITS_STAND, HubRepository
from qwen_align.align.settings.recipe_file import Variant
from qwen_align.align.store.files import read_json, write_json

_TIME_LIMIT_S = 10.0  # for one answer of the hub

Settings = TypeVar("Settings", bound=BaseModel)


class FoundRevision(NamedTuple):
    """The commit that a branch or tag of a repository stands for, and where that was found.

    `place`: where the recipe first names it.
    """

    place: str
    repository: HubRepository
    name: str
    commit: str
    source: Literal["the run's record", "the hub", "the cache; the hub cannot be reached"]

    @property
    def record_name(self) -> str:
        """Returns the name under which the run's record holds the commit."""
        return _get_record_name(self.repository, self.name)

    def format_line(self) -> str:
        """Formats what was found as a line that ends with the setting to paste."""
        return (
            f"{self.place}: {self.name} of {self.repository.name} is taken from {self.source}; to stay with it in "
            f"other runs, write `revision: {self.commit}`"
        )


def get_record_path(home: Path, name: str) -> Path:
    """Returns the record of the runs of a name: {"model OWNER/NAME@main": commit}."""
    return home / "runs" / name / "revisions.json"


class RevisionFinder:
    """A finder of commits that asks the run's record, then the hub, once for each branch or tag."""

    def __init__(self, record: Path | None) -> None:
        """`record`: the file of the run's record, or None for what is no run."""
        self.found: dict[str, FoundRevision] = {}
        self._recorded = _read_record(record) if record else {}

    def pin_settings(self, settings: Settings) -> Settings:
        """Returns the settings with every branch or tag of the hub replaced by its commit.

        Raises RecipeError where it cannot be found.
        """
        pinned = self._pin_revisions_in(settings, "")
        assert isinstance(pinned, type(settings))
        return pinned

    def _pin_revisions_in(self, value: Any, place: str) -> Any:
        """Returns a value of the settings with revisions replaced; the same object where there is none in it."""
        if isinstance(value, BaseModel):
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            pinned = {name: self._pin_revisions_in(old, f"{place}.{name}") for name, old in fields.items()}
            changed = {name: new for name, new in pinned.items() if new is not fields[name]}
            repository: HubRepository | None = getattr(value, "hub_repository", None)
            if repository is not None and not COMMIT.fullmatch(fields["revision"]):
                at = f"{place}.revision".removeprefix(".")
                changed["revision"] = self._find_commit(repository, fields["revision"], at)
            return value.model_copy(update=changed) if changed else value
        if isinstance(value, dict):
            items = {name: self._pin_revisions_in(item, f"{place}.{name}") for name, item in value.items()}
            return items if any(items[name] is not value[name] for name in items) else value
        if isinstance(value, list):
            entries = [self._pin_revisions_in(item, f"{place}[{number}]") for number, item in enumerate(value)]
            return entries if any(new is not old for new, old in zip(entries, value, strict=True)) else value
        return value

    def _find_commit(self, repository: HubRepository, name: str, place: str) -> str:
        """Returns the commit of a branch or tag from the run's record, or else from the hub."""
        key = _get_record_name(repository, name)
        if key not in self.found:
            if recorded := self._recorded.get(key):
                self.found[key] = FoundRevision(place, repository, name, recorded, "the run's record")
            else:
                self.found[key] = _ask_hub(repository, name, place)
        return self.found[key].commit


def pin_variants(variants: Sequence[Variant], finder: RevisionFinder) -> list[Variant]:
    """Returns the variants of a recipe with every branch or tag of the hub replaced by its commit."""
    return [variant._replace(recipe=finder.pin_settings(variant.recipe)) for variant in variants]


def write_found_revisions(record: Path, found: Iterable[FoundRevision]) -> None:
    """Adds the commits that were found to the run's record. Nothing is written where no branch or tag is named."""
    commits = {one.record_name: one.commit for one in found}
    if commits:
        write_json(record, {**_read_record(record), **commits})


def _read_record(record: Path) -> dict[str, str]:
    """Returns the commits in a run's record; none if there is no record. Raises RecipeError if it is damaged."""
    try:
        return read_json(record) if record.exists() else {}
    except ValueError:
        raise RecipeError(f"{record}: cannot be read; delete it, and branches and tags are looked up anew") from None


def _get_record_name(repository: HubRepository, name: str) -> str:
    return f"{repository.kind} {repository.name}@{name}"


def _ask_hub(repository: HubRepository, name: str, place: str) -> FoundRevision:
    """Asks the hub for the commit of a branch or tag, or the hub's cache where the hub cannot be reached.

    Raises RecipeError where neither knows it.
    """
    from huggingface_hub import HfApi  # imported late: it takes half a second, and only names need it
    from huggingface_hub.errors import HfHubHTTPError

    advice = f"give the commit's 40 hex digits instead ({WHERE_COMMITS_STAND})"
    try:
        answer = HfApi().repo_info(repository.name, revision=name, repo_type=repository.kind, timeout=_TIME_LIMIT_S)
    except HfHubHTTPError as error:
        said = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"{place}: the hub has no {repository.kind} {repository.name} with a revision {name} that may be read: "
            f"{said}; {advice}"
        ) from None
    except Exception as error:  # noqa: BLE001  # whatever the library's HTTP client raises without a connection
        if cached := _read_cached_commit(repository, name):
            return FoundRevision(place, repository, name, cached, "the cache; the hub cannot be reached")
        raise RecipeError(
            f"{place}: the hub cannot be reached to find the commit of {repository.name} at {name} "
            f"({str(error).partition(chr(10))[0] or type(error).__name__}); connect, or {advice}"
        ) from None
    if not COMMIT.fullmatch(str(answer.sha)):
        raise RecipeError(f"{place}: the hub names no commit for {repository.name} at {name}; {advice}")
    return FoundRevision(place, repository, name, str(answer.sha), "the hub")


def _read_cached_commit(repository: HubRepository, name: str) -> str | None:
    """Returns the commit that a branch or tag had when the hub's library last downloaded it, or None."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository.name, repo_type=repository.kind)
    path = Path(constants.HF_HUB_CACHE) / folder / "refs" / name
    commit = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return commit if COMMIT.fullmatch(commit) else None

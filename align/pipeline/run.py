"""Carries a recipe through its stages: what is stored is skipped, the rest runs, and a run folder links it all."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from qwen_align.align.errors import BY_EXIT_CODE, RecipeError, StageError
from qwen_align.align.pipeline.graph import Graph, Stage
from qwen_align.align.pipeline.launcher import Launcher, uses_server
from qwen_align.align.pipeline.run import graph
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.tokenizer_check import check_vocabulary
from qwen_align.align.settings import recipe
from qwen_align.align.settings.base import did_you_mean
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.recipe import PRODUCTS, Recipe, Variant
from qwen_align.align.store.store import Folder, Store, store
from qwen_align.align.store.verify_inputs import Inspector
from qwen_align.align.tracking import setup
from qwen_align.align.tracking.curve import EVALUATED, TRAINED, Curve, Point, evaluation
from qwen_align.align.tracking.tracker_clients import Senders
from qwen_align.data_builders.local_file import LocalFile


@dataclass(frozen=True)
class Planned:
    """A stage with its key and its folder; `inputs` is what the worker is told of each reference.

    `missing`: the file of rows that is not there yet; `check` can go on without it, a run cannot.
    """

    stage: Stage
    key: str
    folder: Folder
    inputs: dict[str, dict[str, str]]
    missing: str | None = None

    @property
    def is_stored(self) -> bool:
        return self.folder.is_complete


@dataclass(frozen=True)
class Plan:
    """A recipe's stages in running order, ready to run."""

    recipe: Recipe
    graph: Graph
    stages: list[Planned]
    home: Path

    @property
    def run_folder(self) -> Path:
        return self.home / "runs" / self.recipe.name

    @property
    def tracking_folder(self) -> Path:
        """Where trackers keep their files and logs."""
        return self.run_folder / "tracking"

    @property
    def group(self) -> str:
        """What trackers file the run's stages under."""
        return self.recipe.tracking.group or self.recipe.name

    def named(self, name: str) -> list[Planned]:
        """The stages called so, in the plan or in the recipe; raises RecipeError when there is none."""
        found = [planned for planned in self.stages if name in (planned.stage.name, planned.stage.origin)]
        if not found:
            names = [planned.stage.name for planned in self.stages]
            raise RecipeError(f"no stage is called '{name}'{did_you_mean(name, names)}")
        return found


class Listener(Protocol):
    """Told what happens during a run."""

    def skipped(self, planned: Planned) -> None: ...
    def started(self, planned: Planned) -> None: ...
    def going(self, planned: Planned) -> None: ...
    def finished(self, planned: Planned) -> None: ...
    def noted(self, message: str) -> None: ...


def plan(path: Path, home: Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> Plan:
    """Reads and binds the recipe and computes every key; nothing is written but the cache of file digests."""
    variants = recipe.load(path, overrides, tiny=tiny)
    try:
        return _planned(variants, home)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _planned(variants: Sequence[Variant], home: Path) -> Plan:
    whole = graph.build(variants)
    stored = Store(home / "store")
    keys: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for name, source in whole.models.items():
        try:
            keys[name] = stored.model_key(source)
            folders[name] = Path(f"hub:{source.hub}@{source.revision}") if source.hub else store.model_folder(source)
        except (RecipeError, OSError) as error:
            raise RecipeError(f"models: {name}: {error}") from None
    planned = []
    for stage in whole.stages:
        missing = _missing(stage)
        # A key that no stage has ever had: what reads rows that are not there is not stored either.
        key = (
            hashlib.sha256(f"missing: {missing}".encode()).hexdigest()
            if missing
            else stored.key(stage, {ref: keys[target] for ref, target in stage.targets.items()})
        )
        folder = stored.folder(stage.kind, key)
        inputs = {
            ref: {"name": target, "folder": str(folders[target]), "key": keys[target]}
            for ref, target in stage.targets.items()
        }
        planned.append(Planned(stage, key, folder, inputs, missing))
        keys[stage.name], folders[stage.name] = key, folder.path.resolve()
    stored.save_digests()
    return Plan(variants[0].recipe, whole, planned, home)


def _missing(stage: Stage) -> str | None:
    """The stage's file of rows if it is not there yet and the recipe says how many rows it will have."""
    builder = stage.settings.builder if isinstance(stage.settings, BuildData) else None
    if isinstance(builder, LocalFile) and builder.expect_rows and not Path(builder.path).exists():
        return str(builder.path)
    return None


def run(
    planned: Plan,
    listener: Listener,
    *,
    force: Sequence[str] = (),
    same_versions: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Runs what is not stored yet, in order; raises the AlignError of the first stage that fails."""
    for one in planned.stages:
        if one.missing:
            raise RecipeError(f"stage '{one.stage.origin}': builder.path: {one.missing}: no such file")
    setup.check(planned.recipe.tracking)
    again = [one for asked in force for one in planned.named(asked)]
    check_models(planned, again)
    for one in again:
        _forget(one)
    _link(planned)
    todo = [one for one in planned.stages if not one.is_stored]
    senders = Senders(planned.recipe.tracking, planned.group, planned.tracking_folder, listener.noted)
    inspector = Inspector({one.folder.path.resolve(): one.stage.name for one in planned.stages})
    with Launcher() as launcher, senders:
        if any(uses_server(one.stage) for one in todo):
            launcher.warm_up()
        for one in planned.stages:
            if one.is_stored:
                if same_versions:
                    _check_versions(one)
                one.folder.remove_leftovers()
                listener.skipped(one)
            else:
                for entry in one.inputs.values():
                    inspector.look(Path(entry["folder"]))
                _run_one(one, launcher, senders, listener, stop)


def check_models(planned: Plan, again: Sequence[Planned] = ()) -> None:
    """Raises RecipeError when a stage to run cannot start: its local model has no tokenizer of its own or no template
    to train on, or its DeepSpeed file is missing.

    `again`: stored stages that will run again.
    """
    todo = [one for one in planned.stages if not one.is_stored or one in again]
    for one in todo:
        if (path := one.stage.runtime.deepspeed) and not Path(path).is_file():
            raise RecipeError(f"stage '{one.stage.origin}': runtime.deepspeed: {path}: no such file")
    read = {entry["name"]: Path(entry["folder"]) for one in todo for entry in one.inputs.values()}
    for name, folder in read.items():
        if name in planned.graph.models and not planned.graph.models[name].hub:
            try:
                check_vocabulary(folder, Renderer.load(folder))
            except ValueError as error:  # a RecipeError, or a tokenizer_config.json that is no JSON
                raise RecipeError(f"models: {name}: {error}") from None


def _forget(one: Planned) -> None:
    try:
        with one.folder.locked():
            one.folder.clear()
    except OSError as error:
        raise _cannot(one, error) from None


def _cannot(one: Planned, error: OSError) -> StageError:
    return StageError(f"stage '{one.stage.name}': {error.filename or one.folder.path}: {error.strerror or error}")


def _run_one(one: Planned, launcher: Launcher, senders: Senders, listener: Listener, stop: Callable[[], bool]) -> None:
    def watch() -> bool:
        senders.look()
        listener.going(one)
        return stop()

    name = one.stage.name
    try:
        with one.folder.locked():
            if one.is_stored:  # another run finished it between the look and the lock
                listener.skipped(one)
                return
            if stop():
                raise BY_EXIT_CODE[75]("stopped as asked; run again to go on")
            store.write_json(one.folder.path / "stage.json", job(one))
            listener.started(one)
            is_tracked = one.stage.kind in (*TRAINED, EVALUATED)
            if is_tracked:
                senders.begin(_curve(one))
            ended = launcher.run(one.stage, one.folder.path, watch)
            if is_tracked:
                senders.end(_measured(one), is_whole=one.is_stored)
    except OSError as error:
        raise _cannot(one, error) from None
    if ended.code != 0:
        raise BY_EXIT_CODE[ended.code](f"stage '{name}': {ended.message}\nlog: {one.folder.path / 'log.txt'}")
    if not one.is_stored:
        raise StageError(f"stage '{name}' ended without a manifest\nlog: {one.folder.path / 'log.txt'}")
    listener.finished(one)


def _curve(one: Planned) -> Curve:
    settings = one.stage.settings.model_dump(mode="json")
    resolved = {"seed": one.stage.seed, "runtime": one.stage.runtime.model_dump(mode="json"), "key": one.key}
    return Curve(one.stage.name, one.stage.kind, one.folder.path.resolve(), settings | resolved)


def _measured(one: Planned) -> list[Point]:
    is_measured = one.stage.kind == EVALUATED and one.is_stored
    return [evaluation(one.folder.manifest()["summary"])] if is_measured else []


def job(one: Planned) -> dict[str, Any]:
    """stage.json: all the worker reads."""
    return {
        "key": one.key,
        "name": one.stage.name,
        "settings": one.stage.settings.model_dump(exclude_unset=True),
        "inputs": one.inputs,
        "seed": one.stage.seed,
        "runtime": one.stage.runtime.model_dump(),
    }


def _link(planned: Plan) -> None:
    """runs/NAME/: the recipe as resolved and a link to each stage's folder."""
    try:
        planned.run_folder.mkdir(parents=True, exist_ok=True)
        resolved = yaml.safe_dump(planned.recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False)
        store.write_text(planned.run_folder / "recipe.yaml", resolved)
        links = planned.run_folder / "stages"
        links.mkdir(exist_ok=True)
        for old in links.iterdir():
            old.unlink()
        for one in planned.stages:
            target = os.path.relpath(one.folder.path.resolve(), links.resolve())
            (links / one.stage.name).symlink_to(target, target_is_directory=True)
    except OSError as error:
        raise StageError(f"{planned.run_folder}: cannot be written: {error.strerror or error}") from None


def other_versions(one: Planned) -> list[str]:
    """The libraries whose major version is not the one that a stored stage was made with, as `trl 1.16 -> 2.0`."""
    made_with: Mapping[str, str] = one.folder.manifest()["libraries"]
    return [
        f"{name} {made_with[name]} -> {version}"
        for name, version in store.library_versions().items()
        if name in made_with and made_with[name].split(".")[0] != version.split(".")[0]
    ]


def _check_versions(one: Planned) -> None:
    changed = other_versions(one)
    if changed:
        raise StageError(
            f"stage '{one.stage.name}' was made with other major versions: {', '.join(changed)}; "
            f"recompute it with --force {one.stage.name}, or leave --same-versions out"
        )


def product(one: Planned) -> str:
    return PRODUCTS[one.stage.kind]

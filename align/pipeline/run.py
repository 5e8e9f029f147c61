"""Carries a recipe through its stages: what is stored is skipped, the rest runs, and a run folder links it all."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from qwen_align.align.errors import BY_EXIT_CODE, RecipeError, StageError
from qwen_align.align.pipeline.launcher import Launcher, uses_server
from qwen_align.align.pipeline.plan import Plan, Planned, check_models, other_versions
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.files import write_json, write_text
from qwen_align.align.store.verify_inputs import InputVerifier
from qwen_align.align.tracking import setup
from qwen_align.align.tracking.curve import Curve, Point, to_evaluation_point
from qwen_align.align.tracking.tracker_clients import TrackerClients


class Listener(Protocol):
    """Told what happens during a run."""

    def skipped(self, planned: Planned) -> None: ...
    def started(self, planned: Planned) -> None: ...
    def going(self, planned: Planned) -> None: ...
    def finished(self, planned: Planned) -> None: ...
    def noted(self, message: str) -> None: ...


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
    setup.check_installed(planned.recipe.tracking)
    again = [one for asked in force for one in planned.named(asked)]
    check_models(planned, again)
    for one in again:
        _forget(one)
    _link(planned)
    todo = [one for one in planned.stages if not one.is_stored]
    senders = TrackerClients(planned.recipe.tracking, planned.group, planned.tracking_folder, listener.noted)
    inspector = InputVerifier({one.folder.path.resolve(): one.stage.name for one in planned.stages})
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
                    inspector.verify_folder(Path(entry["folder"]))
                _run_one(one, launcher, senders, listener, stop)


def _forget(one: Planned) -> None:
    try:
        with one.folder.hold_lock():
            one.folder.delete_contents()
    except OSError as error:
        raise _cannot(one, error) from None


def _cannot(one: Planned, error: OSError) -> StageError:
    return StageError(f"stage '{one.stage.name}': {error.filename or one.folder.path}: {error.strerror or error}")


def _run_one(
    one: Planned, launcher: Launcher, senders: TrackerClients, listener: Listener, stop: Callable[[], bool]
) -> None:
    def watch() -> bool:
        senders.check_trackers()
        listener.going(one)
        return stop()

    name = one.stage.name
    try:
        with one.folder.hold_lock():
            if one.is_stored:  # another run finished it between the look and the lock
                listener.skipped(one)
                return
            if stop():
                raise BY_EXIT_CODE[75]("stopped as asked; run again to go on")
            write_json(one.folder.path / "stage.json", job(one))
            listener.started(one)
            is_tracked = STAGE_KINDS[one.kind].curve is not None
            if is_tracked:
                senders.begin_curve(_curve(one))
            ended = launcher.run(one.stage, one.folder.path, watch)
            if is_tracked:
                senders.end_curve(_measured(one), is_whole=one.is_stored)
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
    is_measured = STAGE_KINDS[one.kind].curve == "evaluation" and one.is_stored
    return [to_evaluation_point(one.folder.read_manifest()["summary"])] if is_measured else []


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
        write_text(planned.run_folder / "recipe.yaml", resolved)
        links = planned.run_folder / "stages"
        links.mkdir(exist_ok=True)
        for old in links.iterdir():
            old.unlink()
        for one in planned.stages:
            target = os.path.relpath(one.folder.path.resolve(), links.resolve())
            (links / one.stage.name).symlink_to(target, target_is_directory=True)
    except OSError as error:
        raise StageError(f"{planned.run_folder}: cannot be written: {error.strerror or error}") from None


def _check_versions(one: Planned) -> None:
    changed = other_versions(one)
    if changed:
        raise StageError(
            f"stage '{one.stage.name}' was made with other major versions: {', '.join(changed)}; "
            f"recompute it with --force {one.stage.name}, or leave --same-versions out"
        )

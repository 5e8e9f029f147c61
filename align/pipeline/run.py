"""Runs a plan: skips stored stages, runs the others in order, and links them in the run's folder."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

import yaml

from qwen_align.align.errors import BY_EXIT_CODE, RecipeError, StageError
from qwen_align.align.pipeline.check_models import check_models
from qwen_align.align.pipeline.coordinator import NODE_WAIT_S, Coordinator
from qwen_align.align.pipeline.hub_revisions import get_record_path, write_found_revisions
from qwen_align.align.pipeline.launcher import Launcher, StageExit, uses_warm_server
from qwen_align.align.pipeline.lease_guard import RUN_LEASE
from qwen_align.align.pipeline.machine_check import count_nodes
from qwen_align.align.pipeline.node_place import Rendezvous
from qwen_align.align.pipeline.node_plans import count_run_nodes
from qwen_align.align.pipeline.plan import Plan, PlannedStage, check_can_start, list_version_changes
from qwen_align.align.pipeline.stage_job import build_stage_job
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.files import write_json
from qwen_align.align.store.lease import Lease
from qwen_align.align.store.lease_record import LeaseLost
from qwen_align.align.store.outside_files import OutsideFileWatch
from qwen_align.align.store.run_folders import write_run_folder
from qwen_align.align.store.verify_inputs import InputVerifier
from qwen_align.align.tracking import setup
from qwen_align.align.tracking.curve import Curve, Point, to_evaluation_point
from qwen_align.align.tracking.tracker_clients import TrackerClients


class RunListener(Protocol):
    """The callbacks of a run, called with the stage concerned."""

    def on_stage_skipped(self, stage: PlannedStage) -> None: ...
    def on_stage_started(self, stage: PlannedStage) -> None: ...
    def on_stage_progress(self, stage: PlannedStage) -> None: ...
    def on_stage_finished(self, stage: PlannedStage) -> None: ...
    def on_note(self, message: str) -> None: ...


def run(
    plan: Plan,
    listener: RunListener,
    *,
    force: Sequence[str] = (),
    same_versions: bool = False,
    stop: Callable[[], bool] = lambda: False,
    rendezvous: Rendezvous | None = None,
    node_wait_s: float = NODE_WAIT_S,
) -> None:
    """Runs the stages of a plan that are not stored yet, in order.

    Raises the AlignError of the first stage that fails, and RecipeError where one needs several nodes without a
    `rendezvous`, at which this is node 0. It waits for a node that is not there for `node_wait_s`.

    `force`: names of stages to run again. `same_versions`: refuse stored stages of other major library versions.
    `stop`: returns true once the run should stop.
    """
    for stage in plan.stages:
        if stage.missing:
            raise RecipeError(f"stage '{stage.origin}': builder.path: {stage.missing}: no such file")
    setup.check_installed(plan.recipe.tracking)
    forced = [stage for name in force for stage in plan.find_stages(name)]
    check_can_start(plan, forced)
    for note in check_models(plan, forced):
        listener.on_note(f"note: {note}")
    n_nodes = count_run_nodes([stage for stage in plan.stages if not stage.is_stored or stage in forced])
    if n_nodes > 1 and rendezvous is None:
        raise RecipeError(
            f"runtime.nodes: {n_nodes}: such a run is started with `qwen-align run`, on every node; `qwen-align "
            "launch` writes files that do it"
        )
    resolved = yaml.safe_dump(plan.recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    with ExitStack() as held:
        folders = plan.stage_folders
        if note := write_run_folder(
            plan.home, plan.recipe.name, plan.request, folders, resolved, held, listener.on_note
        ):
            listener.on_note(note)
        for stage in forced:  # linked by now: no `prune` takes its folder away meanwhile
            _clear_stage(stage, listener, stop)
        _keep_revisions(plan, listener)
        coordinator = None
        if n_nodes > 1 and rendezvous is not None:
            coordinator = held.enter_context(Coordinator(plan, rendezvous, node_wait_s, listener.on_note))
        _run_stages(plan, listener, coordinator, same_versions=same_versions, stop=stop)


def _run_stages(
    plan: Plan,
    listener: RunListener,
    coordinator: Coordinator | None,
    *,
    same_versions: bool,
    stop: Callable[[], bool],
) -> None:
    """Runs the stages of a plan that are not stored yet, in order, with a launcher and trackers of their own."""
    stages_to_run = [stage for stage in plan.stages if not stage.is_stored]
    trackers = TrackerClients(plan.recipe.tracking, plan.group, plan.tracking_folder, listener.on_note)
    input_verifier = InputVerifier({stage.folder.path.resolve(): stage.name for stage in plan.stages})
    with Launcher(listener.on_note) as launcher, trackers:
        if any(uses_warm_server(stage.stage) for stage in stages_to_run):
            launcher.start_warm_server()
        for stage in plan.stages:
            if stage.is_stored:
                if same_versions:
                    _check_same_versions(stage)
                stage.folder.remove_leftovers()
                listener.on_stage_skipped(stage)
            else:
                for entry in stage.inputs.values():
                    input_verifier.verify_folder(Path(entry["folder"]))
                _run_stage(stage, launcher, coordinator, trackers, listener, stop)


def _clear_stage(stage: PlannedStage, listener: RunListener, stop: Callable[[], bool]) -> None:
    """Deletes the stored result of a stage, so that the stage runs again."""
    try:
        with stage.folder.hold_lease(say=listener.on_note, stop=stop) as lease:
            lease.check()
            stage.folder.delete_contents()
    except OSError as error:
        raise _to_stage_error(stage, error) from None


def _to_stage_error(stage: PlannedStage, error: OSError) -> StageError:
    """Converts a file-system error to a StageError that names the stage."""
    return StageError(f"stage '{stage.name}': {error.filename or stage.folder.path}: {error.strerror or error}")


def _run_stage(
    stage: PlannedStage,
    launcher: Launcher,
    coordinator: Coordinator | None,
    trackers: TrackerClients,
    listener: RunListener,
    stop: Callable[[], bool],
) -> None:
    """Runs one stage under its folder's lease and sends its training curve to the trackers.

    Raises AlignError when the stage fails, and LeaseLost, with the stage's processes ended, when the lease is lost.
    """

    watch = OutsideFileWatch(stage.outside)

    def poll_stop() -> bool:
        lease.check()
        trackers.check_trackers()
        listener.on_stage_progress(stage)
        is_asked_elsewhere = coordinator is not None and coordinator.poll_stop()
        return stop() or is_asked_elsewhere or (not stage.is_stored and watch.has_changed())

    on_several_hosts = count_nodes(stage.stage) > 1
    try:
        with stage.folder.hold_lease(spans_hosts=on_several_hosts, say=listener.on_note, stop=stop) as lease:
            if stage.is_stored:  # another run finished it before this one had the lease
                listener.on_stage_skipped(stage)
                return
            if stop():
                raise BY_EXIT_CODE[75]("stopped as asked; run again to go on")
            job = {**build_stage_job(stage), RUN_LEASE: lease.describe()}
            write_json(stage.folder.path / "stage.json", job, lease.check)
            listener.on_stage_started(stage)
            is_tracked = STAGE_KINDS[stage.kind].curve is not None
            if is_tracked:
                trackers.begin_curve(_build_curve(stage))
            if coordinator and on_several_hosts:
                start = partial(coordinator.run_stage, launcher, stage, job, poll_stop)
            else:
                start = partial(launcher.run_stage, stage.stage, stage.folder.path, poll_stop)
            stage_exit = _run_in_processes(stage, launcher, lease, start)
            if is_tracked:
                trackers.end_curve(_read_evaluation_points(stage), is_whole=stage.is_stored)
            if watch.error:
                lease.check()
                stage.folder.delete_contents()  # checkpoints too: they are of another file than the key says
                raise StageError(f"stage '{stage.name}': {watch.error}")
            if stage_exit.code != 0:  # within: of several hosts one may still write, so the lease is left to expire
                raise BY_EXIT_CODE[stage_exit.code](
                    f"stage '{stage.name}': {stage_exit.message}\nlog: {stage.folder.path / 'log.txt'}"
                )
    except OSError as error:
        raise _to_stage_error(stage, error) from None
    if not stage.is_stored:
        raise StageError(f"stage '{stage.name}' ended without a manifest\nlog: {stage.folder.path / 'log.txt'}")
    listener.on_stage_finished(stage)


def _run_in_processes(
    stage: PlannedStage, launcher: Launcher, lease: Lease, start: Callable[[], StageExit]
) -> StageExit:
    """Runs the processes of a stage by `start` and returns how they exited. When it raises they have ended.

    Raises LeaseLost when the lease is lost, whatever the stage says of its end.
    """
    try:
        stage_exit = start()
        if stage_exit.code != 0:
            lease.check()
        return stage_exit
    except LeaseLost as error:
        launcher.end_warm_server()
        raise LeaseLost(f"stage '{stage.name}': {error}") from None
    except BaseException:
        launcher.end_warm_server()
        raise


def _build_curve(stage: PlannedStage) -> Curve:
    """Returns the name, folder and settings of a stage under which trackers record its training curve."""
    settings = stage.settings.model_dump(mode="json")
    resolved = {"seed": stage.seed, "runtime": stage.runtime.model_dump(mode="json"), "key": stage.key}
    return Curve(stage.name, stage.kind, stage.folder.path.resolve(), settings | resolved)


def _read_evaluation_points(stage: PlannedStage) -> list[Point]:
    """Returns the metrics of a stored evaluation as tracker points. The list is empty for other kinds of stage."""
    is_measured = STAGE_KINDS[stage.kind].curve == "evaluation" and stage.is_stored
    return [to_evaluation_point(stage.folder.read_manifest()["summary"])] if is_measured else []


def _keep_revisions(plan: Plan, listener: RunListener) -> None:
    """Writes the commits that were found for branches and tags of the hub to the run's record, and tells them."""
    path = get_record_path(plan.home, plan.recipe.name)
    try:
        write_found_revisions(path, plan.revisions)
    except OSError as error:
        raise StageError(f"{path}: cannot be written: {error.strerror or error}") from None
    for found in plan.revisions:
        listener.on_note(found.format_line())


def _check_same_versions(stage: PlannedStage) -> None:
    """Raises StageError when a stored stage was made with other major library versions."""
    changed = list_version_changes(stage)
    if changed:
        raise StageError(
            f"stage '{stage.name}' was made with other major versions: {', '.join(changed)}; "
            f"recompute it with --force {stage.name}, or leave --same-versions out"
        )

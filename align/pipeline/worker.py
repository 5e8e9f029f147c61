"""Runs one stage: `python -m qwen_align.align.pipeline.worker FOLDER REPORT`.

All it reads is FOLDER/stage.json.

REPORT gets one JSON object at the end: exit code and message.
"""

import contextlib
import json
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qwen_align.align.context import NODES, NOTES, PROGRESS, TRACKING, Context
from qwen_align.align.errors import AlignError, OutOfMemory, Preempted
from qwen_align.align.pipeline.lease_guard import RUN_LEASE, guard_lease
from qwen_align.align.pipeline.process_lifetime import die_with_parent
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.memory_advice import word_advice
from qwen_align.align.stages.phase_estimates import estimate_memory
from qwen_align.align.stages.registry import STAGE_KINDS, import_function
from qwen_align.align.store.digest_cache import DIGESTS
from qwen_align.align.store.files import compute_sha256, get_new_file_mode, read_json, remove_tree, write_json
from qwen_align.align.store.lease_record import LeaseLost
from qwen_align.align.store.lease_view import LeaseView
from qwen_align.align.store.outside_files import OutsideFileChanged, OutsideFiles, verify_outside_files
from qwen_align.align.store.provenance import find_git_commit, read_library_versions
from qwen_align.align.store.stage_folder import LEASE, OLD_LOCK, UNFINISHED
from qwen_align.align.training.distributed import gather_objects, get_rank, get_world_size, is_main_process
from qwen_align.align.training.heap import map_large_blocks
from qwen_align.align.training.memory_meter import read_peak_memory, start_memory_meter
from qwen_align.align.training.out_of_memory import describe_out_of_memory, is_out_of_memory

_STARTED = time.monotonic()
_FULL_BYTES = 16 * 2**20  # less than this is left when the file of some weights did not fit
_MEBI_PER_GIBI = 2**20 if sys.platform != "darwin" else 2**30  # ru_maxrss: KiB on Linux, bytes on macOS


def run_stage(folder: Path, report: Path, *, started: float, imported_before: float = 0.0) -> int:
    """Runs the stage in `folder`, writes its exit code and message to `report` and returns the code.

    Errors of the stage are not raised.

    `started`: monotonic time at which the process came into being; `imported_before`: seconds of imports done for it.
    """
    stage_report: dict[str, Any] = {"code": 0, "message": ""}
    lease: LeaseView | None = None
    is_lost = False
    try:
        lease = _guard_lease_of_run(folder)
        _remove_unfinished_files(folder)
        _run_stage_in_folder(folder, lease, started=started, imported_before=imported_before)
    except OutOfMemory as error:
        _print_traceback()
        stage_report = {"code": error.exit_code, "message": str(error), "out_of_memory": True}
    except AlignError as error:
        _print_traceback()
        is_ours = {} if isinstance(error, Preempted) else {"is_ours": True}  # the others' errors say more than that
        stage_report = {"code": error.exit_code, "message": str(error), **is_ours}
        is_lost = isinstance(error, LeaseLost)
    except OSError as error:
        _print_traceback()
        stage_report = {"code": 4, "message": f"{error.filename or folder}: {error.strerror or error}"}
    except Exception as error:  # noqa: BLE001 - the process boundary: whatever a library raises ends as exit code 4
        _print_traceback()
        full = describe_full_disk(folder)
        stage_report = {"code": 4, "message": f"{full}{type(error).__name__}: {error}"}
    if stage_report["code"] != 0 and not is_lost and _may_still_write(lease):
        _remove_unfinished_files(folder)
    if is_main_process():
        report.write_text(json.dumps(stage_report))
    elif stage_report["code"] != 0:  # what the main process says of it may be that this one has gone
        report.with_suffix(f".{get_rank()}.json").write_text(json.dumps(stage_report))
    return int(stage_report["code"])


def _guard_lease_of_run(folder: Path) -> LeaseView | None:
    """Starts the guard of a stage's process and returns a view of its run's lease. Returns None without such a run.

    Raises LeaseLost where the lease is lost already.
    """
    path = folder / "stage.json"
    described = read_json(path).get(RUN_LEASE) if path.exists() else None
    return guard_lease(described) if described else None


def _may_still_write(lease: LeaseView | None) -> bool:
    """Returns whether the run of a stage still holds the lease of its folder, if a run has started the stage."""
    try:
        if lease:
            lease.require_held()
    except LeaseLost:
        return False
    return True


def describe_full_disk(folder: Path) -> str:
    """Returns the beginning of a message where a folder's disk has no room left, else an empty text.

    Libraries that write weights say so in words of their own, or not at all.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes >= _FULL_BYTES:
        return ""
    return f"{folder}: no room is left on its disk ({free_bytes / 2**20:.0f} MiB free; `qwen-align prune`): "


def _print_traceback() -> None:
    """Prints the traceback of the current error to the stage's log."""
    with contextlib.suppress(OSError):  # the log is in the folder, whose disk may be what is full
        traceback.print_exc()
        sys.stderr.flush()


def _remove_unfinished_files(folder: Path) -> None:
    """Removes the partly written files of a stage that was killed. Their names begin with a dot."""
    if is_main_process():
        for unfinished in folder.glob(".*"):
            if not unfinished.name.startswith(".nfs"):  # what NFS keeps of a deleted file that is still open
                unfinished.unlink(missing_ok=True)


def _run_stage_in_folder(folder: Path, lease: LeaseView | None, *, started: float, imported_before: float) -> None:
    """Reads stage.json, runs the stage and writes its manifest. `lease`: that of its run, if one started it."""
    stage_job = read_json(folder / "stage.json")
    settings: Any = TypeAdapter[Any](AnyStage).validate_python(stage_job["settings"])
    runtime = Runtime.model_validate(stage_job["runtime"])
    context = Context(folder, stage_job["seed"], runtime, is_main=is_main_process())
    context.catch_stop_signals()
    if context.is_main:
        (folder / PROGRESS).unlink(missing_ok=True)  # of an earlier process
    kind = STAGE_KINDS[settings.kind]
    run = import_function(kind.run)
    if kind.needs_torch:
        prepare_torch(runtime)
        _start_memory_meter(runtime)
    imported = time.monotonic()
    outside = OutsideFiles(**stage_job.get("outside", {"digests": {}, "folders": []}))
    if context.is_main:
        verify_outside_files(outside, folder.parent / DIGESTS)
    inputs = {ref: Path(entry["folder"]) for ref, entry in stage_job["inputs"].items()}
    context.estimates_gib = estimate_memory(settings, inputs, runtime)
    summary = _run_in_memory(partial(run, settings, inputs, folder, context), settings, context)
    times = {
        "seconds": time.monotonic() - imported,
        "cpu_seconds": measure_cpu_seconds(),
        "import_seconds": imported - started + imported_before,
    }
    if context.is_main:
        try:
            verify_outside_files(outside, folder.parent / DIGESTS)
        except OutsideFileChanged:
            for name in UNFINISHED:
                remove_tree(folder / name)  # of another file than the key says
            raise
        times = {name: round(seconds, 3) for name, seconds in times.items()}
        _write_manifest(context, stage_job, summary, times, lease)


def prepare_torch(runtime: Runtime) -> None:
    """Sets the threads that torch uses; on a CPU how memory is given back, and that results are the same every time.

    Else the gradient of rows that were taken by number, such as a prompt's keys for each of its completions, is added
    up in whatever order threads come: in GRPO that moved weights by 1e-7 a step and the accuracy by half a point.
    """
    import torch

    from qwen_align.align.models.loading import choose_device

    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if choose_device(runtime).type == "cpu":
        map_large_blocks()
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it


def _start_memory_meter(runtime: Runtime) -> None:
    """Starts measuring the memory of this process's device."""
    from qwen_align.align.models.loading import choose_device

    start_memory_meter(choose_device(runtime))


def _run_in_memory(run: Callable[[], dict[str, Any]], settings: Any, context: Context) -> dict[str, Any]:
    """Runs a stage. Raises OutOfMemory when memory runs out, with the phase, the figures and what to turn."""
    try:
        return run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = str(error) if isinstance(error, OutOfMemory) else f"{type(error).__name__}: {error}"
        kept = error.kept if isinstance(error, OutOfMemory) else ""
        raise OutOfMemory(
            describe_out_of_memory(
                context.phase,
                stage=settings.kind,
                peak=read_peak_memory(),
                estimate_gib=context.estimates_gib.get(context.phase.name),
                advice=word_advice(settings, context.runtime, context.phase),
                kept=kept or describe_kept_work(context.out),
                said=said,
            )
        ) from error


def describe_kept_work(folder: Path) -> str:
    """Says what a further run of a stage goes on from: its checkpoint, its drawn completions or the beginning."""
    steps = [int(path.name.rpartition("-")[2]) for path in (folder / "checkpoints").glob("checkpoint-*")]
    if steps:
        return f"`run` goes on from the checkpoint of step {max(steps):,}"
    if any((folder / "parts").glob("**/*.jsonl")):
        return "`run` goes on from the completions that are drawn"
    return "`run` starts it from the beginning"


def measure_cpu_seconds() -> float:
    """Returns the CPU seconds of all processes of a stage and of their finished children.

    Of this process alone where they have not joined a group.
    """
    own_seconds = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(gather_objects(own_seconds))


def _write_manifest(
    context: Context,
    stage_job: dict[str, Any],
    summary: dict[str, Any],
    times: dict[str, float],
    lease: LeaseView | None,
) -> None:
    """Writes manifest.json, which marks the stage's folder as complete.

    Raises LeaseLost, with nothing published, where the run of the stage no longer holds the lease of the folder.
    """
    folder = context.out
    if (peak := read_peak_memory()) is not None:
        context.measured.setdefault("memory/peak_gib", peak.held)
    left_out = {"manifest.json", "stage.json", "log.txt", LEASE, OLD_LOCK, PROGRESS, NODES, NOTES}
    left_out |= {"metrics.jsonl", TRACKING}
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in {*left_out, *UNFINISHED}
    )
    for path in files:
        path.chmod(get_new_file_mode())  # safetensors makes files that nobody else can read
    manifest = {
        "key": stage_job["key"],
        "kind": stage_job["settings"]["kind"],
        "outputs": {str(path.relative_to(folder)): compute_sha256(path) for path in files},
        "summary": summary,
        **times,
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MEBI_PER_GIBI, 3),
        "measured": context.measured,
        "disk_gib": round(sum(path.stat().st_size for path in files) / 2**30, 6),
        "world_size": get_world_size(),
        "git_commit": find_git_commit(),
        "libraries": read_library_versions(),
    }
    (folder / PROGRESS).unlink(missing_ok=True)
    write_json(folder / "manifest.json", manifest, lease.require_held if lease else lambda: None)
    for name in UNFINISHED:
        with contextlib.suppress(OSError):  # NFS keeps files that another process has open; the next run deletes them
            remove_tree(folder / name)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(run_stage(Path(sys.argv[1]), Path(sys.argv[2]), started=_STARTED))

"""Deletes stored stages that no run folder names, and nothing else."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qwen_align.align.context import NODES, NOTES, PROGRESS, TRACKING
from qwen_align.align.errors import StageError
from qwen_align.align.models.model_description import list_base_paths
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.files import measure_gib, read_json, remove_tree
from qwen_align.align.store.lease import Lease
from qwen_align.align.store.lease_record import VISIBILITY_S, LeaseWatch
from qwen_align.align.store.lease_view import watch_unknown_holders
from qwen_align.align.store.run_folders import hold_runs_lease
from qwen_align.align.store.run_links import find_named_stages
from qwen_align.align.store.stage_folder import LEASE, OLD_LOCK, UNFINISHED, StageFolder

STAGE_NAME = re.compile(f"({'|'.join(STAGE_KINDS)})-([0-9a-f]{{16}})")
# What a stage's folder holds beside the outputs that its manifest lists.
_LEASES = {LEASE, OLD_LOCK}  # one of them is in every folder of a stage
RECORDS = {
    "manifest.json",
    "stage.json",
    "log.txt",
    "metrics.jsonl",
    PROGRESS,
    NODES,
    NOTES,
    TRACKING,
    *_LEASES,
    *UNFINISHED,
}


def prune_store(
    home: Path,
    *,
    dry_run: bool,
    report_kept: Callable[[str], None] = lambda message: None,
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[tuple[Path, float]]:
    """Deletes stored stages that no run folder names and yields (folder, GiB) of each.

    A folder is deleted only if its name is that of a kind of stage with 16 hex digits, if it holds what stages write
    and nothing else, and if no process works on it. Links are never followed. `report_kept` is told of other folders
    that no run names, `say` of what is waited for. Raises StageError, with nothing deleted, where the store itself is a
    link, or where there are stages and no run folder that names any.
    """
    store = home / "store"
    if not store.is_dir():
        return
    if store.is_symlink():
        raise StageError(f"{store}: is a link to {store.resolve()}, which other homes may use; prune there by hand")
    folders = [path for path in sorted(store.iterdir()) if STAGE_NAME.fullmatch(path.name)]
    if not folders:
        return
    watch = LeaseWatch()
    if not dry_run:
        named = find_named_stages(home)
        unnamed = [folder for folder in folders if folder.name not in named and not find_foreign_content(folder)]
        watch_unknown_holders([folder / LEASE for folder in unnamed], watch, say)
    with ExitStack() as held:
        runs = held.enter_context(hold_runs_lease(home, say)) if (home / "runs").is_dir() else None
        if runs and runs.record.is_shared and not dry_run:
            say(f"waiting until all links that other hosts have made are seen ({VISIBILITY_S:.0f} s)")
            time.sleep(VISIBILITY_S)
        named = find_named_stages(home)
        if not named:
            raise StageError(
                f"{home / 'runs'}: no run folder there names a stage, so {len(folders)} stages would all go; if that "
                f"is meant, delete {store} yourself"
            )
        named |= _find_needed_stages(store, named)
        for folder in folders:
            if folder.name in named:
                continue
            if foreign := find_foreign_content(folder):
                report_kept(f"{folder}: {foreign}")
                continue
            size = measure_gib(folder)
            if not dry_run:
                try:
                    _delete_stage(folder, watch, runs)
                except StageError as error:
                    report_kept(str(error))
                    continue
            yield folder, size


def _delete_stage(folder: Path, watch: LeaseWatch, runs: Lease | None) -> None:
    """Deletes a stage's folder. Raises StageError where it, or the lease of runs/, is not this process's."""
    with StageFolder(folder).hold_lease(may_wait=False, watch=watch) as lease:
        for held in (lease, runs):
            if held:
                held.check()
        StageFolder(folder).delete_contents()
        remove_tree(folder)


def find_foreign_content(folder: Path) -> str | None:
    """Returns what of a folder in the store is not of a stage's making. Returns None if all of it is."""
    if folder.is_symlink():
        return f"is a link to {os.readlink(folder)}"
    if not folder.is_dir():
        return "is no folder"
    entries = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if not entries & _LEASES or any((folder / name).is_symlink() for name in _LEASES):
        return "is not of a stage's making: it has no lease"
    if entries <= {*_LEASES, "log.txt"}:
        return None
    digits = folder.name.rpartition("-")[2]
    records = [record for name in ("manifest.json", "stage.json") if (record := _read_record(folder / name))]
    if not any(str(record.get("key")).startswith(digits) for record in records):
        return f"is not of a stage's making: no manifest.json or stage.json with the key {digits}"
    outputs = next((record["outputs"] for record in records if isinstance(record.get("outputs"), dict)), None)
    if outputs is None:  # a stage that is not complete: what it has written so far is in no list
        return None
    others = entries - RECORDS - {Path(name).parts[0] for name in outputs}
    foreign = sorted(name for name in others if not _is_empty_folder(folder / name))
    return f"holds {foreign[0]}, which no stage wrote" if foreign else None


def _is_empty_folder(path: Path) -> bool:
    """Returns whether a path is a folder without any file in it, at any depth."""
    return path.is_dir() and not path.is_symlink() and not any(not inner.is_dir() for inner in path.rglob("*"))


def _find_needed_stages(store: Path, named: set[str]) -> set[str]:
    """Returns the names of the store folders that named stages read: their inputs, and what their models build on."""
    needed: set[str] = set()
    for name in named:
        inputs = _read_record(store / name / "stage.json").get("inputs")
        for entry in inputs.values() if isinstance(inputs, dict) else ():
            needed |= set(Path(str(entry.get("folder"))).parts) if isinstance(entry, dict) else set()
    waiting = [*named, *needed]
    while waiting:
        for path in list_base_paths(store / waiting.pop()):
            new = set(path.parts) - named - needed
            waiting += [name for name in new if STAGE_NAME.fullmatch(name)]
            needed |= new
    return needed


def _read_record(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a stage's folder. Returns {} if it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}

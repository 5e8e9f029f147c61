"""Implements `qwen-align runs`, which lists the runs of a home folder."""

from collections.abc import Iterator
from pathlib import Path

from qwen_align.align.store.run_folders import (
    RECORD,
    RunRecord,
    format_request,
    format_time,
    read_links,
    read_record,
)
from qwen_align.align.store.run_links import LINKS
from qwen_align.align.store.stage_folder import StageFolder


def describe_runs(home: Path) -> Iterator[str]:
    """Yields a line for each run: its folder's name, when it was started, how far it is, recipe and changes.

    The last started comes last, where a terminal ends.
    """
    folders = [path.parent for path in home.glob(f"runs/*/{LINKS}")]
    runs = [(folder, read_record(folder)) for folder in sorted(folders)]
    runs.sort(key=lambda run: run[1].started if run[1] else "")
    width = max((len(folder.name) for folder, _ in runs), default=0)
    for folder, record in runs:
        when = format_time(record.started) if record else "-"
        what = format_request(record.request) if record else f"no {RECORD}: of an earlier version"
        yield f"{folder.name:<{width}}  {when:<16}  {_describe_state(folder, record):<16}  {what}"


def _describe_state(folder: Path, record: RunRecord | None) -> str:
    """Returns how far a run is: the number of its stages that are stored, and whether it runs or failed."""
    stages = [StageFolder(path) for path in read_links(folder).values()]
    n_stored = sum(stage.is_complete for stage in stages)
    state = f"{n_stored}/{len(stages)} stages"
    if n_stored == len(stages):
        return state
    holders = [holder for stage in stages if not stage.is_complete and (holder := stage.find_holder())]
    if holders:
        hosts = sorted({holder.host for holder in holders if holder.host})
        return f"{state}, running" + (f" on {', '.join(hosts)}" if hosts else "")
    if record and record.exit_code not in (None, 0, 75):
        return f"{state}, failed"
    return f"{state}, stopped"

"""Runs a plan and keeps its report up to date: while a stage runs, and when the run ends, however it ends."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence

from qwen_align.align.errors import AlignError
from qwen_align.align.pipeline.coordinator import NODE_WAIT_S
from qwen_align.align.pipeline.node_place import Rendezvous
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.pipeline.run import RunListener, run
from qwen_align.align.reporting.report_files import write_report
from qwen_align.align.reporting.results import RunResults
from qwen_align.align.store.run_folders import close_record, describe_replaced

FIRST_REPORT_S = 3.0  # after a stage has started: a short one has ended by then
SECONDS_BETWEEN_REPORTS = 15.0
# Of the run's time at most a twentieth goes into its page: with long evaluations it takes seconds to write.
LEAST_SHARE_BETWEEN = 20.0


class LiveReport:
    """A run listener that rewrites the report every so often while a stage runs, and passes all events on."""

    def __init__(self, plan: Plan, listener: RunListener) -> None:
        self._plan, self._listener = plan, listener
        self._due, self._not_before = math.inf, 0.0

    def on_stage_skipped(self, stage: PlannedStage) -> None:
        self._listener.on_stage_skipped(stage)

    def on_stage_started(self, stage: PlannedStage) -> None:
        self._listener.on_stage_started(stage)
        self._due = min(self._due, max(time.monotonic() + FIRST_REPORT_S, self._not_before))

    def on_stage_progress(self, stage: PlannedStage) -> None:
        self._listener.on_stage_progress(stage)
        started = time.monotonic()
        if started < self._due:
            return
        # A full disk stops the stage, which says so; a damaged stage is told at the end.
        with contextlib.suppress(OSError, AlignError):
            write_report(self._plan)
        now = time.monotonic()
        self._not_before = now + LEAST_SHARE_BETWEEN * (now - started)
        self._due = max(now + SECONDS_BETWEEN_REPORTS, self._not_before)

    def on_stage_finished(self, stage: PlannedStage) -> None:
        self._listener.on_stage_finished(stage)

    def on_note(self, message: str) -> None:
        self._listener.on_note(message)


def run_and_report(
    plan: Plan,
    listener: RunListener,
    *,
    force: Sequence[str],
    same_versions: bool,
    stop: Callable[[], bool],
    rendezvous: Rendezvous | None = None,
    node_wait_s: float = NODE_WAIT_S,
) -> RunResults:
    """Runs a plan as `run` does, with its report written along the way and at the end, and returns the results.

    The record of the run says how it ended. Raises the AlignError of the first stage that fails.
    """
    if note := describe_replaced(plan.home, plan.run_folder, plan.stage_folders):
        listener.on_note(note)
    try:
        run(
            plan,
            LiveReport(plan, listener),
            force=force,
            same_versions=same_versions,
            stop=stop,
            rendezvous=rendezvous,
            node_wait_s=node_wait_s,
        )
        results = write_report(plan)
    except AlignError as error:
        # The error is reported anyway; a full disk has no room for a report.
        with contextlib.suppress(OSError, AlignError):
            close_record(plan.run_folder, error.exit_code, str(error))
            write_report(plan)
        raise
    close_record(plan.run_folder, 0)
    return results

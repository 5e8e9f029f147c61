"""The report is written while a stage runs, costs little, and the record says how a run ended."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.api.notebook_progress import SilentListener
from qwen_align.align.errors import Preempted, StageError
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.reporting import live_report
from qwen_align.align.reporting.live_report import LiveReport, run_and_report
from qwen_align.align.store.run_folders import read_record, write_run_folder
from tests.align.reporting.test_results import DATA, finish, plan

__all__ = ["plan"]


@pytest.mark.parametrize(("took", "seconds_between"), [(0.1, 15), (3.0, 60)])
def test_it_is_written_now_and_then(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, took: float, seconds_between: float
) -> None:
    now, written = [0.0], []

    def write(planned: Plan) -> None:
        written.append(now[0])
        now[0] += took
        if len(written) == 2:
            raise OSError("the disk is full, which the stage will say itself")

    monkeypatch.setattr(live_report.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live_report, "write_report", write)
    planned = plan(DATA)
    listener = LiveReport(planned, SilentListener())
    listener.on_stage_started(planned.stages[0])
    while now[0] < 200:
        now[0] += 0.25
        listener.on_stage_progress(planned.stages[0])
    assert written[0] == 3.0
    gaps = [later - earlier - took for earlier, later in itertools.pairwise(written)]
    assert all(gap == pytest.approx(seconds_between, abs=0.3) for gap in gaps)
    assert len(gaps) >= 2
    started = now[0]
    listener.on_stage_started(planned.stages[0])
    while len(written) == len(gaps) + 1:
        now[0] += 0.25
        listener.on_stage_progress(planned.stages[0])
    # The next stage is there at once, but a page that takes long keeps its distance.
    assert written[-1] == pytest.approx(min(started + 3, written[-2] + took + seconds_between), abs=0.3) or took > 1


@pytest.mark.parametrize(("error", "code"), [(None, 0), (StageError("no <golds>"), 4), (Preempted("x"), 75)])
def test_the_record_says_how_a_run_ended(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, error: Any, code: int
) -> None:
    def run(planned: Plan, listener: Any, **_: Any) -> None:
        write_run_folder(planned.home, "trial", planned.request, planned.stage_folders, "")
        assert ended(planned.run_folder) is None
        finish(planned, "test")
        if error:
            raise error

    monkeypatch.setattr(live_report, "run", run)
    planned = plan(DATA)

    def start() -> None:
        run_and_report(planned, SilentListener(), force=(), same_versions=False, stop=lambda: False)

    if error:
        with pytest.raises(type(error)):
            start()
    else:
        start()
    assert ended(planned.run_folder) == code
    page, text = ((planned.run_folder / f"report.{form}").read_text() for form in ("html", "md"))
    assert ("no &lt;golds&gt;" in page, "The run failed: no <golds>" in text) == ((code == 4),) * 2
    assert ("The run failed" in page) == (code == 4)


def ended(folder: Path) -> int | None:
    record = read_record(folder)
    assert record
    return record.exit_code

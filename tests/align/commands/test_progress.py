"""What a run says while it goes: in a terminal in place, into a log a line now and then, whatever the terminal can."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qwen_align.align.commands import progress
from qwen_align.align.commands.progress import RunProgress
from qwen_align.align.commands.stage_status import StageStatus, format_duration, format_metrics
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from tests.align.reporting.test_results import DATA, SFT, plan

__all__ = ["plan"]


class Terminal(io.StringIO):
    """A file that is a terminal."""

    def isatty(self) -> bool:
        return True


class Watched:
    """A run of one training stage whose files and clock a test sets."""

    def __init__(self, planned: Plan, console: Console) -> None:
        self.stage: PlannedStage = planned.find_stages("sft")[0]
        self.folder: Path = self.stage.folder.path
        self.folder.mkdir(parents=True)
        self.listener = RunProgress(console, planned)
        self.now = 1000.0

    def train(self, step: int, *, of: int, **metrics: float) -> None:
        state = {"done": step, "total": of, "unit": "steps", "seconds": 2.0 * step, "done_here": step}
        (self.folder / "progress.json").write_text(json.dumps({**state, "tokens_here": 6800 * step}))
        if metrics:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.listener.on_stage_progress(self.stage)


@pytest.fixture
def watch(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Console], Watched]]:
    def start(console: Console) -> Watched:
        watched = Watched(plan(DATA, SFT), console)
        monkeypatch.setattr(progress.time, "monotonic", lambda: watched.now)
        watched.listener.on_stage_started(watched.stage)
        return watched

    return start


def test_a_log_has_a_line_at_once_each_tenth_and_each_minute(watch: Callable[[Console], Watched]) -> None:
    file = io.StringIO()
    run = watch(Console(file=file))
    for step in range(1, 101):
        run.now += 1.0
        run.train(step, of=100, loss=2.0 / step, grad_norm=0.5)
    lines = [line for line in file.getvalue().splitlines() if " steps" in line]
    assert lines[0] == "  sft: 1/100 steps  ETA 3:18  loss 2  grad norm 0.5  3,400 tok/s"
    assert [int(re.findall(r"(\d+)/100", line)[0]) for line in lines] == [1, *range(11, 100, 10)]
    run.folder.joinpath("metrics.jsonl").unlink()
    file.truncate(0)
    for step in range(100, 104):  # two minutes a step of very many
        run.now += 120.0
        run.train(step, of=100_000, loss=1.0, reward=0.25)
    assert len([line for line in file.getvalue().splitlines() if "reward 0.25" in line]) == 4


def test_short_steps_do_not_flood_a_log(watch: Callable[[Console], Watched]) -> None:
    file = io.StringIO()
    run = watch(Console(file=file))
    for step in range(1, 101):
        run.now += 0.01
        run.train(step, of=100, loss=1.0)
    assert file.getvalue().count("steps") == 1


def test_a_stage_without_metrics_is_shown_too(watch: Callable[[Console], Watched]) -> None:
    file = io.StringIO()
    run = watch(Console(file=file))
    for step in (0, 1, 2):
        run.now += 10.0
        run.train(step, of=4)
    assert re.findall(r"sft: (.*?)  ", file.getvalue()) == ["1/4 steps", "2/4 steps"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_shows_all_of_it_in_its_width(watch: Callable[[Console], Watched], width: int) -> None:
    file = Terminal()
    run = watch(Console(file=file, force_terminal=True, width=width, no_color=True))
    with run.listener:
        run.train(3, of=60, loss=1.25, grad_norm=0.5, reward=0.75)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert "3/60 steps  ETA 1:54" in text
    assert all(part in " ".join(text.split()) for part in ("reward 0.75 loss 1.25 grad norm 0.5",))
    assert max(map(len, text.replace("\r", "\n").splitlines())) <= width
    assert ("━" in text) == (width > 40)


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    watch: Callable[[Console], Watched], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TERM", name)
    file = Terminal()
    run = watch(Console(file=file))
    with run.listener:
        run.train(3, of=60, loss=1.25)
    assert "sft: 3/60 steps" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_a_file_stays_a_file_under_force_color(
    watch: Callable[[Console], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    run = watch(Console(file=file))
    with run.listener:
        run.train(3, of=60, loss=1.25)
    assert "sft: 3/60 steps" in file.getvalue()
    assert "\x1b[1A" not in file.getvalue(), "no cursor is moved"


def test_the_line_of_a_finished_stage_has_its_last_metrics(watch: Callable[[Console], Watched]) -> None:
    file = io.StringIO()
    run = watch(Console(file=file))
    run.train(60, of=60, loss=0.125, grad_norm=2.0)
    (run.folder / "manifest.json").write_text(json.dumps({"seconds": 3.0, "summary": {"steps": 60}}))
    run.listener.on_stage_finished(run.stage)
    assert file.getvalue().splitlines()[-1].endswith("3.0 s  loss 0.125  grad norm 2; steps 60")


def test_a_resumed_stage_is_shown_from_where_it_goes_on(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 8, "loss": 4.0}\n{"step": 9, "loss": 3.0}\n{"step": 10, "los')
    status = StageStatus(tmp_path)
    status.read_new()
    assert (status.done, status.metrics) == (9, {"loss": 3.0})
    metrics.write_text('{"step": 8, "loss": 4.0}\n')
    status.read_new()
    assert (status.done, status.metrics) == (8, {"loss": 4.0})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0:00"), (80, "1:20"), (3599, "59:59"), (7507, "2:05:07"), (400_000, "111:06:40")]
)
def test_the_time_left_is_readable(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


EQUAL: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"groups/no_signal_share": 0.0, "groups/all_zero_share": 0.0}, ""),
    (
        {"groups/no_signal_share": 1.0, "groups/all_zero_share": 1.0, "groups/all_one_share": 0.0},
        "rewards equal in 100% of groups (all 0 in 100%)",
    ),
    (
        {"groups/no_signal_share": 0.75, "groups/all_zero_share": 0.25, "groups/all_one_share": 0.5},
        "rewards equal in 75% of groups (all 0 in 25%, all 1 in 50%)",
    ),
    ({"groups/no_signal_share": 0.5}, "rewards equal in 50% of groups"),
    ({"frac_reward_zero_std": 0.5}, "rewards equal in 50% of groups"),
]


@pytest.mark.parametrize(("metrics", "text"), EQUAL)
def test_equal_rewards_are_said_to_be_all_0_or_all_1(metrics: dict[str, float], text: str) -> None:
    assert format_metrics(metrics) == text

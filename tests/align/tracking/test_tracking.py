"""Tracking: every step once, nothing of it in a key, and no tracker that raises or hangs can hurt a run."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.errors import Preempted, RecipeError, StageError
from qwen_align.align.pipeline import run as pipeline_run
from qwen_align.align.pipeline.launcher import StageExit
from qwen_align.align.pipeline.plan import PlannedStage
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.pipeline.run import run as run_plan
from qwen_align.align.settings.recipe_file import load_variants
from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.tracking import setup, to_wandb, tracker_clients, tracker_process
from qwen_align.align.tracking.curve import Curve, JsonLinesReader, Run, to_evaluation_point, to_point
from qwen_align.align.tracking.trackers import load_tracker_class
from qwen_align.align.training import trl_arguments

DATA: dict[str, Any] = {
    "name": "data",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "trace", "n": 4, "steps": [1]},
}
QUESTIONS: dict[str, Any] = {**DATA, "name": "questions", "builder": {**DATA["builder"], "rows": "problem"}}
SFT: dict[str, Any] = {
    "name": "sft", "kind": "sft", "from_model": "base", "from_data": ["data"],
    "max_tokens": 128, "batch": 1, "epochs": 1, "learning_rate": 1e-4,
}  # fmt: skip
EVALUATE: dict[str, Any] = {
    "name": "after", "kind": "evaluate", "from_model": "sft", "from_data": ["questions"],
    "completions_per_prompt": 1, "sampling": {"max_tokens": 8},
}  # fmt: skip
RESULT = {"set": "questions", "switch": "default", "mode": None, "accuracy": 0.5, "stderr": 0.1, "obeyed_share": None}


class Kept:
    """A tracker that keeps what it is given; `fails` at that step."""

    def __init__(self, fails: int | None = None) -> None:
        self.runs: list[Run] = []
        self.steps: list[int] = []
        self.figures: list[dict[str, float]] = []
        self.ends: list[bool] = []
        self._fails = fails

    def begin(self, run: Run) -> str | None:
        self.runs.append(run)
        return None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step == self._fails:
            raise ConnectionError("no route to the tracker\nand much more")
        self.steps.append(step)
        self.figures.append(dict(figures))

    def end(self, *, is_whole: bool) -> None:
        self.ends.append(is_whole)


def write_steps(folder: Path, first: int, last: int, mode: str = "a") -> None:
    with (folder / "metrics.jsonl").open(mode) as file:
        file.writelines(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(first, last + 1))


def cut_after(folder: Path, step: int) -> None:
    """What a resumed stage does to its metrics: the file is replaced by one without what comes again."""
    path = folder / "metrics.jsonl"
    kept = [line for line in path.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    path.with_suffix(".new").write_text("".join(f"{line}\n" for line in kept if json.loads(line)["step"] <= step))
    path.with_suffix(".new").replace(path)


def serve(tracker: Kept, folder: Path, *events: Callable[[], object], project: str = "p", end: bool = False) -> None:
    """A tracker's process from begin to the end of a run; `events` happen between its looks."""
    orders = folder / "orders.jsonl"
    curve = Curve("sft", "sft", folder, {"learning_rate": 1e-4})
    orders.write_text(json.dumps({"begin": {**curve._asdict(), "folder": str(folder)}}) + "\n")
    if end:
        with orders.open("a") as file:
            file.write(json.dumps({"end": {"points": [], "is_whole": True}}) + "\n")
    left = list(events)

    def is_over() -> bool:
        if left:
            left.pop(0)()
        return not left

    tracker_process.serve_orders(
        tracker, tracker_process.Destination("kept", project, "group"), orders, is_over, lambda message: None
    )


def test_a_killed_and_resumed_stage_gives_each_step_once_in_one_run(tmp_path: Path) -> None:
    first, second = Kept(), Kept()
    serve(first, tmp_path, lambda: write_steps(tmp_path, 1, 4), lambda: write_steps(tmp_path, 5, 7))
    assert first.ends == [False], "the run went away before the stage had ended"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # as a kill leaves it
    serve(second, tmp_path, lambda: cut_after(tmp_path, 5), lambda: write_steps(tmp_path, 6, 9))
    assert first.steps + second.steps == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert first.runs[0].id == second.runs[0].id
    assert (first.runs[0].last_step, second.runs[0].last_step) == (None, 7)


def test_what_was_logged_while_no_tracker_lived_is_sent_by_the_next(tmp_path: Path) -> None:
    first, second = Kept(), Kept()
    serve(first, tmp_path, lambda: write_steps(tmp_path, 1, 2))
    write_steps(tmp_path, 3, 5)
    serve(second, tmp_path, lambda: None)
    assert second.steps == [3, 4, 5]


def test_a_stage_that_has_ended_before_its_tracker_was_up_is_sent_whole(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 3)
    tracker = Kept()
    serve(tracker, tmp_path, lambda: None, end=True)
    assert (tracker.steps, tracker.ends) == ([1, 2, 3], [True])


def test_another_project_gets_a_run_of_its_own_with_all_of_the_curve(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 3)
    here, there = Kept(), Kept()
    serve(here, tmp_path, lambda: None)
    serve(there, tmp_path, lambda: None, project="q")
    assert there.steps == [1, 2, 3]
    assert here.runs[0].id != there.runs[0].id


def test_the_run_holds_the_settings_and_where_it_belongs(tmp_path: Path) -> None:
    tracker = Kept()
    serve(tracker, tmp_path, lambda: None)
    (run,) = tracker.runs
    assert run.config == {"learning_rate": 1e-4}
    assert (run.name, run.kind, run.project, run.group) == ("sft", "sft", "p", "group")


def test_lines_come_once_and_only_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = JsonLinesReader(path)
    assert lines.read_new() == []
    path.write_text('{"a": 1}\n[2]\nno JSON\n{"a": ')
    assert lines.read_new() == [{"a": 1}]
    with path.open("a") as file:
        file.write('3}\n{"a": 4}\n')
    assert lines.read_new() == [{"a": 3}, {"a": 4}]
    assert lines.read_new() == []


def test_a_point_is_finite_numbers_at_a_step() -> None:
    logged = {"step": 3, "loss": 1, "kl": float("nan"), "reason": "length", "skipped": True, "entropy": None}
    assert to_point(logged) == (3, {"loss": 1.0, "skipped": 1.0})
    assert to_point({"loss": 1.0}) is None


def test_an_evaluations_figures_are_named_by_set_switch_and_mode() -> None:
    thinking = {**RESULT, "switch": "soft", "mode": "think", "accuracy": 0.75}
    step, figures = to_evaluation_point({"results": [RESULT, thinking]})
    assert step == 0
    assert figures == {
        "questions/default/accuracy": 0.5,
        "questions/default/stderr": 0.1,
        "questions/soft/think/accuracy": 0.75,
        "questions/soft/think/stderr": 0.1,
    }


# What goes through a run.


class Toy:
    """In place of the launcher: a stage logs three steps, or an evaluation its result, and is done."""

    during: Callable[[Callable[[], bool]], object] = staticmethod(lambda watch: watch())

    def __init__(self, on_note: Callable[[str], None]) -> None: ...
    def end_warm_server(self) -> None: ...

    def __enter__(self) -> "Toy":
        return self

    def __exit__(self, *_: object) -> None: ...
    def start_warm_server(self) -> None: ...

    def run_stage(self, stage: Any, folder: Path, watch: Callable[[], bool]) -> StageExit:
        if stage.kind == "sft":
            write_steps(folder, 1, 3)
        self.during(watch)
        summary = {"results": [RESULT]} if stage.kind == "evaluate" else {}
        manifest = {"key": "", "kind": stage.kind, "summary": summary, "seconds": 0.0, "libraries": {}, "outputs": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return StageExit(0, "")


class Heard:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_stage_skipped(self, planned: PlannedStage) -> None: ...
    def on_stage_started(self, planned: PlannedStage) -> None: ...
    def on_stage_progress(self, planned: PlannedStage) -> None: ...
    def on_stage_finished(self, planned: PlannedStage) -> None: ...

    def on_note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def stages(tiny_model: Path, write_recipe: Callable[..., Path]) -> Callable[..., Path]:
    """`stages(tracking)` writes a recipe with a training and an evaluation."""

    def write(tracking: dict[str, Any] | None = None) -> Path:
        rest = {"tracking": tracking} if tracking else {}
        return write_recipe([DATA, QUESTIONS, SFT, EVALUATE], models={"base": {"path": str(tiny_model)}}, **rest)

    return write


def run(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the recipe with toy stages; returns the notes."""
    monkeypatch.setattr(pipeline_run, "Launcher", Toy)
    heard = Heard()
    run_plan(make_plan(path, home), heard)
    return heard.notes


def fake(name: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of that name for the trackers' processes and for this one."""
    (folder / "fakes").mkdir(exist_ok=True)
    (folder / "fakes" / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder / "fakes"))
    monkeypatch.syspath_prepend(str(folder / "fakes"))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine imports slowly; here that is no tracker's failure."""
    monkeypatch.setattr(tracker_clients, "FINISH_S", 300.0)


def test_nothing_of_it_is_in_a_key(stages: Callable[..., Path], tmp_path: Path) -> None:
    plain = [one.key for one in make_plan(stages(), tmp_path).stages]
    tracked = make_plan(stages({"to": ["tensorboard"], "project": "p", "group": "g"}), tmp_path)
    assert [one.key for one in tracked.stages] == plain


def test_it_can_be_set_from_the_command_line(stages: Callable[..., Path]) -> None:
    (variant,) = load_variants(stages(), ["tracking.to=[wandb, trackio]", "tracking.space=me/curves"])
    assert variant.recipe.tracking == Tracking(to=["wandb", "trackio"], space="me/curves")


@pytest.mark.parametrize(
    ("tracking", "said"),
    [
        ({"to": ["wandb", "wandb"]}, "tracking: to: a tracker is named twice"),
        ({"to": ["wandb"], "space": "me/curves"}, "tracking: space: is trackio's"),
        ({"to": ["mlflow"]}, "must be 'tensorboard', 'wandb' or 'trackio'; found 'mlflow'"),
        ({"projct": "p"}, "'projct' is no setting here. Did you mean 'project'?"),
    ],
)
def test_wrong_settings_are_refused(stages: Callable[..., Path], tracking: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_variants(stages(tracking))
    assert said in str(error.value)


def test_a_missing_library_is_said_before_anything_runs(
    stages: Callable[..., Path], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    path = stages({"to": ["wandb", "trackio"]})
    for command in ("check", "run"):
        said = cli(command, path)
        assert said.code == 2
        assert "wandb, trackio are not installed: pip install 'qwen-align[wandb,trackio]'" in said.err
    assert not (tmp_path / "store").exists()


def test_check_says_where_the_curves_go(
    stages: Callable[..., Path], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup, "check_installed", lambda tracking: None)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said = cli("check", stages({"to": ["tensorboard", "wandb", "trackio"]})).out
    folder = tmp_path / "runs" / "trial" / "tracking"
    assert f"curves: tensorboard: files; look at them with `tensorboard --logdir {folder}/tensorboard`" in said
    assert f"curves: wandb: offline; upload with `wandb sync {folder}/wandb/offline-run-*`" in said
    assert "curves: trackio: local, project qwen-align; look at them with `trackio show`" in said


def test_wandb_is_online_only_with_a_key_in_the_environment() -> None:
    assert to_wandb.choose_wandb_mode({}) == "offline"
    assert to_wandb.choose_wandb_mode({"WANDB_MODE": "online"}) == "offline"
    assert to_wandb.choose_wandb_mode({"WANDB_API_KEY": "k"}) == "online"
    assert to_wandb.choose_wandb_mode({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}) == "offline"


def test_a_trackers_process_gets_its_own_key_and_nothing_that_reports() -> None:
    given = {"WANDB_API_KEY": "w", "HF_TOKEN": "h", "TRACKIO_SPACE_ID": "me/else", "PATH": "/bin"}
    local, space = Tracking(to=["trackio"]), Tracking(to=["trackio"], space="me/curves")
    wandb = setup.build_tracker_environment("wandb", local, given)
    assert (wandb["WANDB_API_KEY"], "HF_TOKEN" in wandb, wandb["WANDB_ERROR_REPORTING"]) == ("w", False, "false")
    trackio = setup.build_tracker_environment("trackio", local, given)
    assert not {"WANDB_API_KEY", "HF_TOKEN", "TRACKIO_SPACE_ID"} & set(trackio)
    assert trackio["HF_HUB_OFFLINE"] == "1"
    sent = setup.build_tracker_environment("trackio", space, given)
    assert sent["HF_TOKEN"] == "h"
    assert not {"HF_HUB_OFFLINE", "TRACKIO_SPACE_ID"} & set(sent)


def test_no_trainer_reports_by_itself(tmp_path: Path, stages: Callable[..., Path]) -> None:
    from qwen_align.align.settings.runtime import Runtime

    (variant,) = load_variants(stages())
    (sft,) = (stage for stage in variant.recipe.stages if getattr(stage, "name", "") == "sft")
    arguments = trl_arguments.build_sft_arguments(sft, Runtime(device="cpu"), tmp_path, steps=1, seed=0)  # type: ignore[arg-type]
    assert arguments.report_to == []


RAISES = """
def init(**given):
    raise ConnectionError("no route to the tracker\\nand much more")
"""
HANGS = """
import time
def init(**given):
    time.sleep(600)
"""


@pytest.mark.usefixtures("patient")
def test_a_tracker_that_raises_is_noted_once_and_the_run_goes_on(
    stages: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("trackio", RAISES, tmp_path, monkeypatch)
    (note,) = run(stages({"to": ["trackio"]}), tmp_path, monkeypatch)
    assert note.startswith("tracking: trackio: ConnectionError: no route to the tracker; the run is not touched by it")
    log = tmp_path / "runs" / "trial" / "tracking" / "trackio.log"
    assert note.endswith(f"log: {log}")
    assert "and much more" in log.read_text()
    assert all(one.is_stored for one in make_plan(tmp_path / "recipe.yaml", tmp_path).stages)


def test_a_tracker_that_fails_early_is_noted_while_the_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("trackio", RAISES, tmp_path, monkeypatch)
    notes: list[str] = []
    deadline = time.monotonic() + 60
    with tracker_clients.TrackerClients(
        Tracking(to=["trackio"]), "group", tmp_path / "tracking", notes.append
    ) as tracked:
        tracked.begin_curve(Curve("sft", "sft", tmp_path, {}))
        while not notes and time.monotonic() < deadline:
            tracked.check_trackers()
        assert len(notes) == 1
        tracked.end_curve(is_whole=True)
    assert len(notes) == 1


def test_a_tracker_that_hangs_is_ended_after_a_bounded_wait(
    stages: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("trackio", HANGS, tmp_path, monkeypatch)
    monkeypatch.setattr(tracker_clients, "FINISH_S", 0.2)
    started = time.monotonic()
    (note,) = run(stages({"to": ["trackio"]}), tmp_path, monkeypatch)
    assert time.monotonic() - started < 30, "it would have slept 600 s"
    assert "tracking: trackio: did not finish in time and was ended; the run is not touched by it" in note


@pytest.mark.parametrize("error", [StageError("broken"), Preempted("stopped as asked")])
def test_a_run_that_fails_waits_less_and_says_its_own_error(
    stages: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(watch: object) -> None:
        raise error

    fake("trackio", HANGS, tmp_path, monkeypatch)
    monkeypatch.setattr(tracker_clients, "LEAVE_S", 0.2)
    monkeypatch.setattr(Toy, "during", staticmethod(fail))
    monkeypatch.setattr(pipeline_run, "Launcher", Toy)
    heard = Heard()
    planned = make_plan(stages({"to": ["trackio"]}), tmp_path)
    for one in planned.stages[:2]:
        one.folder.path.mkdir(parents=True)
        (one.folder.path / "manifest.json").write_text(json.dumps({"outputs": {}}))
    with pytest.raises(type(error)):
        run_plan(planned, heard)
    assert len(heard.notes) == 1


# The real libraries, with no network asked for.


def test_tensorboard_holds_each_step_once_over_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage, files = tmp_path / "stage", tmp_path / "files"
    stage.mkdir()
    for first, last in ((1, 7), (6, 9)):
        tracker = load_tracker_class("tensorboard")(Tracking(to=["tensorboard"]), files)
        if first > 1:
            cut_after(stage, first - 1)
        write_steps(stage, first, last)
        serve(tracker, stage, lambda: None)  # type: ignore[arg-type]
    (folder,) = files.iterdir()
    found = EventAccumulator(str(folder))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 10))
    (settings,) = found.Tensors("settings/text_summary")
    assert b"learning_rate: 0.0001" in settings.tensor_proto.string_val[0]


@pytest.mark.engine
@pytest.mark.usefixtures("patient")
def test_trackio_stays_local_and_holds_each_step_once(
    stages: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert run(stages({"to": ["trackio"]}), tmp_path, monkeypatch) == []
    assert run(stages({"to": ["trackio"]}), tmp_path, monkeypatch) == [], "all is stored: nothing is sent again"
    with sqlite3.connect(tmp_path / "trackio" / "qwen-align.db") as database:
        steps = database.execute("select run_name, step from metrics order by run_name desc, step").fetchall()
        groups = {json.loads(row[0])["_Group"] for row in database.execute("select config from configs")}
    assert [(name.partition("-")[0], step) for name, step in steps] == [
        ("sft", 1),
        ("sft", 2),
        ("sft", 3),
        ("after", 0),
    ]
    assert groups == {"trial"}


@pytest.mark.engine
@pytest.mark.usefixtures("patient")
def test_wandb_without_a_key_writes_offline_files_and_no_more(
    stages: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert run(stages({"to": ["wandb"]}), tmp_path, monkeypatch) == []
    folder = tmp_path / "runs" / "trial" / "tracking" / "wandb"
    runs = sorted(folder.glob("offline-run-*/*.wandb"))
    assert len(runs) == 2, "a run a stage"
    logged = b"".join(path.read_bytes() for path in runs)
    assert all(word in logged for word in (b"learning_rate", b"questions/default/accuracy", b"trial"))
    kept = {path.name for path in folder.glob("offline-run-*/files/*")}
    assert not kept & {"requirements.txt", "wandb-metadata.json", "output.log", "code"}

"""Renders report.html: one self-contained page, light and dark, English and Chinese, for small and large screens."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.resources import files
from itertools import islice
from typing import Any, TypeVar

import jinja2
import yaml
from markupsafe import Markup

from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.reporting import svg
from qwen_align.align.reporting.columns import (
    COMPARISON_COLUMNS,
    COMPARISONS,
    DATA_COLUMNS,
    DATA_ON_PAGE,
    RESULT_COLUMNS,
    RESULTS_IN_COPIES,
    RESULTS_ON_PAGE,
    STAGE_COLUMNS,
    STAGES_ON_PAGE,
    Column,
    ResultRow,
    choose_result_columns,
    format_table,
)
from qwen_align.align.reporting.latex import format_latex_table
from qwen_align.align.reporting.learning_curves import (
    RUNNING,
    UNFINISHED,
    choose_open_curves,
    draw_training,
    find_state,
    read_json_lines,
)
from qwen_align.align.reporting.markdown import format_markdown_table
from qwen_align.align.reporting.results import RunResults, pool_by_seed
from qwen_align.align.reporting.summary_line import list_left_out_columns
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.run_folders import read_record
from qwen_align.align.store.stage_folder import explain_damage
from qwen_align.reward.thinking import split_for_display
from qwen_align.reward.verdict import is_right_value

_Part = TypeVar("_Part")
MAX_SAMPLES, MAX_CHARACTERS, MAX_COMPLETIONS = 12, 4000, 20_000


def render_page(plan: Plan, results: RunResults) -> str:
    """Renders the report of a run as one HTML page.

    All of its text is escaped; it holds no script but its own and loads nothing.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        (files("qwen_align") / "align" / "reporting" / "page.html.j2").read_text(encoding="utf-8")
    )
    stored = [stage for stage in plan.stages if stage.is_stored]
    started = [stage for stage in plan.stages if stage.folder.path.exists()]
    states = {stage.name: find_state(stage) for stage in started}
    groups, rows = _group_by_seed(started), pool_by_seed(results.evaluations)
    copy = format_table(RESULT_COLUMNS, choose_result_columns(RESULTS_IN_COPIES, rows), rows)
    return template.render(
        title=plan.recipe.report.title or plan.recipe.name,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        rows=rows,
        result_columns=_choose_columns(RESULT_COLUMNS, choose_result_columns(RESULTS_ON_PAGE, rows)),
        pictures=_draw_results(rows),
        comparisons=results.comparisons,
        comparison_columns=_choose_columns(COMPARISON_COLUMNS, COMPARISONS),
        training=choose_open_curves(
            [curves for name, group in groups if (curves := _read_part(partial(draw_training, name), group))]
        ),
        lengths=[lengths for _, group in groups if (lengths := _read_part(_draw_lengths, group))],
        notes=[note for stage in started for note in _read_part(_list_notes, [stage])],
        samples=[samples for _, group in groups if (samples := _read_part(_choose_samples, group))],
        several=any(len(group) > 1 for _, group in groups),
        data=[_describe_data(stage) for stage in stored if stage.product == "data"],
        data_columns=_choose_columns(DATA_COLUMNS, DATA_ON_PAGE),
        stages=results.stages,
        stage_columns=_choose_columns(STAGE_COLUMNS, STAGES_ON_PAGE),
        running=[name for name, state in states.items() if state == RUNNING],
        failure=record.failure if (record := read_record(plan.run_folder)) else "",
        waiting=[stage.name for stage in plan.stages if states.get(stage.name, UNFINISHED) == UNFINISHED],
        settings=yaml.safe_dump(
            plan.recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
        ),
        versions=stored[-1].folder.read_manifest().get("libraries", {}) if stored else {},
        commit=stored[-1].folder.read_manifest().get("git_commit") if stored else None,
        markdown=format_markdown_table(copy.headings, copy.cells),
        latex=format_latex_table(copy.headings, copy.cells, copy.is_number),
    )


def _read_part(read: Callable[[Sequence[PlannedStage]], _Part], group: Sequence[PlannedStage]) -> _Part:
    """Reads a part of the page from the files of stages. Raises StageError if they are damaged."""
    with explain_damage(group[0].name, group[0].folder.path):
        return read(group)


def _list_notes(group: Sequence[PlannedStage]) -> list[dict[str, Any]]:
    """Returns what watchdogs and others noted in stages, with the stages' names."""
    return [{**note, "stage": stage.name} for stage in group for note in read_json_lines(stage, "notes.jsonl")]


def _choose_columns(table: Mapping[str, Column[Any]], names: Sequence[str]) -> list[tuple[str, Column[Any]]]:
    """Returns the named columns of a table as (name, column) pairs."""
    return [(name, table[name]) for name in names]


def _draw_results(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Draws one bar chart of accuracies per question set, with a bar for every model and thinking switch."""
    switches = list(dict.fromkeys(row.asked for row in rows))
    pictures = []
    for question_set in dict.fromkeys(row.question_set for row in rows):
        bars = [
            svg.Bar(
                _format_bar_label(row),
                row.accuracy,
                row.error,
                switches.index(row.asked),
                tuple(row.accuracy_by_seed) if len(row.accuracy_by_seed) > 1 else (),
            )
            for row in rows
            if row.question_set == question_set
        ]
        title = f"accuracy on {question_set}"
        wide, narrow = (Markup(svg.draw_bars(bars, title=title, narrow=narrow)) for narrow in (False, True))
        pictures.append({"set": question_set, "wide": wide, "narrow": narrow})
    return pictures


def _format_bar_label(row: ResultRow) -> str:
    asked = "" if row.asked == "default" else f" · {row.asked}"
    return f"{row.model}{asked}{' (control)' if row.is_control else ''}"


def _group_by_seed(stages: Sequence[PlannedStage]) -> list[tuple[str, list[PlannedStage]]]:
    """Groups stages that differ only by seed, under their common name."""
    groups: dict[str, list[PlannedStage]] = {}
    for stage in stages:
        cell = [f"{axis}={value}" for axis, value in stage.axes.items() if axis != "seed"]
        groups.setdefault(" ".join([stage.origin, *cell]), []).append(stage)
    return list(groups.items())


def _draw_lengths(group: Sequence[PlannedStage]) -> dict[str, Any] | None:
    """Draws histograms of a stage's completion lengths, right and wrong, and of its rewards.

    Returns None for a stage without completions.
    """
    stage = group[0]
    name = STAGE_KINDS[stage.kind].completions_file
    if name is None:
        return None
    right: list[float] = []
    wrong: list[float] = []
    values: list[float] = []
    n_no_verdict = 0
    for row in islice(read_json_lines(stage, name), MAX_COMPLETIONS):
        label = row.get("reward") if row.get("reward") in row["verdicts"] else next(iter(row["verdicts"]), None)
        value = row["verdicts"][label].get("value") if label else None
        if value is None:
            n_no_verdict += 1
            continue
        (right if is_right_value(value) else wrong).append(float(row["n_tokens"]))
        values.append(float(value))
    if not values:
        return None
    groups = [("right", right, 2), ("wrong", wrong, 1)]
    return {
        "name": stage.name,
        "tokens": Markup(svg.draw_histogram(groups, title="tokens of right and wrong completions")),
        "values": Markup(svg.draw_histogram([("reward", values, 0)], title="rewards")),
        "n_right": len(right),
        "n_wrong": len(wrong),
        "n_no_verdict": n_no_verdict,
    }


def _choose_samples(group: Sequence[PlannedStage]) -> dict[str, Any] | None:
    """Chooses sample completions of a stage for the report.

    Of RL they are from the first and last batch, of an evaluation right and wrong ones.
    """
    stage = group[0]
    if STAGE_KINDS[stage.kind].curve == "evaluation":
        right: list[dict[str, Any]] = []
        not_right: list[dict[str, Any]] = []
        # One a question: its samples are much alike.
        by_question = {
            row["prompt_id"]: row for row in islice(read_json_lines(stage, "completions.jsonl"), MAX_COMPLETIONS)
        }
        for row in by_question.values():
            value = row["verdicts"].get(row.get("reward", ""), {}).get("value")
            (right if value is not None and is_right_value(value) else not_right).append(row)
        half = MAX_SAMPLES // 2
        chosen = [row for pair in zip(right[:half], not_right[:half], strict=False) for row in pair]
    else:
        rows = list(read_json_lines(stage, "samples.jsonl"))
        steps = sorted({row["step"] for row in rows})
        chosen = [row for row in rows if row["step"] in (*steps[:1], *steps[-1:])][: MAX_SAMPLES * 2]
    if not chosen:
        return None
    return {"name": stage.name, "kind": stage.kind, "rows": [_describe_sample(row) for row in chosen]}


def _describe_sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parts of a completion that the report page shows, with thinking separated from the answer."""
    thinking, answer = split_for_display(str(row["text"]))
    return {
        "step": row.get("step"),
        "id": row["prompt_id"],
        "mode": row.get("mode"),
        "prompt": [(turn["role"], _shorten(turn["content"])) for turn in row["prompt"]],
        "thinking": _shorten(thinking),
        "answer": _shorten(answer),
        "gold": None if row.get("gold") is None else _shorten(str(row["gold"])),
        "verdicts": [
            (name, verdict.get("value"), verdict.get("reason", "")) for name, verdict in row["verdicts"].items()
        ],
        "advantage": row.get("advantage"),
        "value": row.get("value"),
        "tokens": row["n_tokens"],
        "finish": row["finish_reason"],
    }


def _shorten(text: str) -> str:
    """Cuts a text to at most MAX_CHARACTERS characters."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} […]"


def _describe_data(stage: PlannedStage) -> dict[str, Any]:
    """Returns the row, drop and left-out column counts of a stored data stage for the report page."""
    summary = stage.folder.read_manifest()["summary"]
    return {
        "name": stage.name,
        "kind": stage.kind,
        "rows": summary.get("rows", 0),
        "dropped": summary.get("dropped") or {},
        "left_out": list_left_out_columns(summary),
    }

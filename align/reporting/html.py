"""Renders report.html: one self-contained page, light and dark, English and Chinese, for small and large screens."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
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
    format_table,
)
from qwen_align.align.reporting.latex import format_latex_table
from qwen_align.align.reporting.markdown import format_markdown_table
from qwen_align.align.reporting.results import RunResults, pool_by_seed
from qwen_align.align.reporting.summary_line import list_left_out_columns
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.stage_folder import explain_damage
from qwen_align.reward.thinking import split_for_display

# What is drawn of a training stage, where it is logged: (metric, English, Chinese). Reward and accuracy come first, for
# an on-policy loss says nothing.
CURVES = (
    ("reward", "reward", "奖励"),
    ("held_out/accuracy", "held-out accuracy", "留出集正确率"),
    ("loss", "loss", "损失"),
    ("rewards/margins", "implied margin", "隐式间隔"),
    ("accuracy", "pairs ranked right", "偏好对排序正确率"),
    ("entropy", "entropy, nats a token", "熵（nat/token）"),
    ("completions/mean_tokens", "tokens a completion", "每个回答的 token 数"),
    ("completions/clipped_share", "cut at max_tokens", "被截断的比例"),
    ("groups/no_signal_share", "groups without signal", "无信号的组"),
    ("kl", "KL to the reference", "与参考模型的 KL"),
    ("value/explained", "variance the critic explains", "价值模型解释的方差"),
    ("grad_norm", "gradient norm", "梯度范数"),
)
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
    groups, rows = _group_by_seed(stored), pool_by_seed(results.evaluations)
    copy = format_table(RESULT_COLUMNS, RESULTS_IN_COPIES, rows)
    return template.render(
        title=plan.recipe.report.title or plan.recipe.name,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        rows=rows,
        result_columns=_choose_columns(RESULT_COLUMNS, RESULTS_ON_PAGE),
        pictures=_draw_results(rows),
        comparisons=results.comparisons,
        comparison_columns=_choose_columns(COMPARISON_COLUMNS, COMPARISONS),
        training=[curves for name, group in groups if (curves := _read_part(partial(_draw_training, name), group))],
        lengths=[lengths for _, group in groups if (lengths := _read_part(_draw_lengths, group))],
        notes=[note for stage in stored for note in _read_part(_list_notes, [stage])],
        samples=[samples for _, group in groups if (samples := _read_part(_choose_samples, group))],
        several=any(len(group) > 1 for _, group in groups),
        data=[_describe_data(stage) for stage in stored if stage.product == "data"],
        data_columns=_choose_columns(DATA_COLUMNS, DATA_ON_PAGE),
        stages=results.stages,
        stage_columns=_choose_columns(STAGE_COLUMNS, STAGES_ON_PAGE),
        waiting=[stage.name for stage in plan.stages if not stage.is_stored],
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
    return [{**note, "stage": stage.name} for stage in group for note in _read_json_lines(stage, "notes.jsonl")]


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
        picture = Markup(svg.draw_bars(bars, title=f"accuracy on {question_set}"))
        pictures.append({"set": question_set, "svg": picture})
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


def _draw_training(name: str, group: Sequence[PlannedStage]) -> dict[str, Any] | None:
    """Draws the learning curves of one training stage, one line per seed. Returns None if nothing was logged."""
    logged = [list(_read_json_lines(stage, "metrics.jsonl")) for stage in group]
    pictures: list[dict[str, Any]] = []
    for metric, english, chinese in CURVES:
        lines = [[(float(line["step"]), float(line[metric])) for line in run if metric in line] for run in logged]
        drawn = [
            svg.Curve(points, index if len(lines) > 1 else len(pictures))
            for index, points in enumerate(lines)
            if len(points) > 1
        ]
        if drawn:
            last = statistics.fmean(curve.points[-1][1] for curve in drawn)
            picture = Markup(svg.draw_curves(drawn, title=english))
            pictures.append({"en": english, "zh": chinese, "svg": picture, "last": last})
    return {"name": name, "kind": group[0].kind, "pictures": pictures} if pictures else None


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
    for row in islice(_read_json_lines(stage, name), MAX_COMPLETIONS):
        known_values = [verdict["value"] for verdict in row["verdicts"].values() if verdict.get("value") is not None]
        label = row.get("reward") if row.get("reward") in row["verdicts"] else next(iter(row["verdicts"]), None)
        value = row["verdicts"][label].get("value") if label else None
        (right if value is not None and value >= 1 else wrong).append(float(row["n_tokens"]))
        values.append(float(known_values[0]) if value is None and known_values else float(value or 0.0))
    if not right and not wrong:
        return None
    groups = [("right", right, 2), ("wrong", wrong, 1)]
    return {
        "name": stage.name,
        "tokens": Markup(svg.draw_histogram(groups, title="tokens of right and wrong completions")),
        "values": Markup(svg.draw_histogram([("reward", values, 0)], title="rewards")),
        "n_right": len(right),
        "n_wrong": len(wrong),
    }


def _choose_samples(group: Sequence[PlannedStage]) -> dict[str, Any] | None:
    """Chooses sample completions of a stage for the report.

    Of RL they are from the first and last batch, of an evaluation right and wrong ones.
    """
    stage = group[0]
    if STAGE_KINDS[stage.kind].curve == "evaluation":
        by_value: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        # One a question: its samples are much alike.
        by_question = {
            row["prompt_id"]: row for row in islice(_read_json_lines(stage, "completions.jsonl"), MAX_COMPLETIONS)
        }
        for row in by_question.values():
            by_value[(row["verdicts"].get(row.get("reward", ""), {}).get("value") or 0) >= 1].append(row)
        half = MAX_SAMPLES // 2
        chosen = [row for pair in zip(by_value[True][:half], by_value[False][:half], strict=False) for row in pair]
    else:
        rows = list(_read_json_lines(stage, "samples.jsonl"))
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


def _read_json_lines(stage: PlannedStage, name: str) -> Iterator[dict[str, Any]]:
    """Yields the objects of a stage's JSON Lines file. Yields nothing if the file does not exist."""
    path: Path = stage.folder.path / name
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield _parse_object(line)


def _parse_object(line: str) -> dict[str, Any]:
    """Parses a line as a JSON object. Raises ValueError if it is none."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line is no JSON object")
    return value

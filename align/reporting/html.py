"""report.html: one page that needs nothing else, light and dark, English and Chinese, for a phone and for a desk."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import yaml
from markupsafe import Markup

from qwen_align.align.pipeline.plan import Plan, Planned
from qwen_align.align.reporting import svg
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.reward.thinking import split_for_display

if TYPE_CHECKING:
    from qwen_align.align.reporting.results import Written

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
OTHERS = ("pass_at_k", "maj_at_k", "obeyed_share", "stopped_share", "mean_tokens")
MOST_SAMPLES, MOST_CHARACTERS, MOST_COMPLETIONS = 12, 4000, 20_000


class Row(NamedTuple):
    """One model under one question set and switch, over all cells that measured it."""

    stage: str
    data: str
    asked: str
    is_control: bool
    mean: float
    error: float
    values: list[float]
    others: dict[str, float | None]


def html(planned: Plan, written: "Written") -> str:
    """The page. All of its text is escaped; it holds no script but its own and loads nothing."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        (files("qwen_align") / "align" / "reporting" / "page.html.j2").read_text(encoding="utf-8")
    )
    done = [one for one in planned.stages if one.is_stored]
    groups, rows = _groups(done), list(_rows(written.evaluations))
    return template.render(
        title=planned.recipe.report.title or planned.recipe.name,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        rows=rows,
        pictures=_ladder_pictures(rows),
        comparisons=written.comparisons,
        training=[found for name, group in groups if (found := _training(name, group))],
        lengths=[found for _, group in groups if (found := _lengths(group[0]))],
        notes=[{**note, "stage": one.stage.name} for one in done for note in _lines(one, "notes.jsonl")],
        samples=[found for _, group in groups if (found := _samples(group[0]))],
        several=any(len(group) > 1 for _, group in groups),
        data=[_data(one) for one in done if one.product == "data"],
        stages=written.stages,
        waiting=[one.stage.name for one in planned.stages if not one.is_stored],
        settings=yaml.safe_dump(
            planned.recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
        ),
        versions=done[-1].folder.read_manifest().get("libraries", {}) if done else {},
        commit=done[-1].folder.read_manifest().get("git_commit") if done else None,
        markdown=_markdown(rows),
        latex=_latex(rows),
    )


def _rows(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for one in evaluations:
        asked = one["switch"] if one["mode"] is None else f"{one['switch']} {one['mode']}"
        cell = [f"{axis}={value}" for axis, value in one["axes"].items() if axis not in ("seed", "round")]
        groups.setdefault((" ".join([one["stage"], *cell]), one["set"], asked), []).append(one)
    for (stage, data, asked), cells in groups.items():
        values = [float(one["accuracy"]) for one in cells]
        error = float(cells[0]["stderr"]) if len(cells) == 1 else statistics.stdev(values) / sqrt(len(values))
        control = bool(cells[0]["is_control"])
        others = {name: _mean([one.get(name) for one in cells]) for name in OTHERS}
        yield Row(stage, data, asked, control, statistics.fmean(values), error, values, others)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _ladder_pictures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One picture a question set: every model under every switch, colours by switch."""
    switches = list(dict.fromkeys(row.asked for row in rows))
    found = []
    for data in dict.fromkeys(row.data for row in rows):
        bars = [
            svg.Bar(
                _label(row),
                row.mean,
                row.error,
                switches.index(row.asked),
                tuple(row.values) if len(row.values) > 1 else (),
            )
            for row in rows
            if row.data == data
        ]
        found.append({"set": data, "svg": Markup(svg.bars(bars, title=f"accuracy on {data}"))})
    return found


def _label(row: Row) -> str:
    asked = "" if row.asked == "default" else f" · {row.asked}"
    return f"{row.stage}{asked}{' (control)' if row.is_control else ''}"


def _groups(stages: Sequence[Planned]) -> list[tuple[str, list[Planned]]]:
    """Stages that differ by seed alone stand together."""
    groups: dict[str, list[Planned]] = {}
    for one in stages:
        cell = [f"{axis}={value}" for axis, value in one.stage.axes.items() if axis != "seed"]
        groups.setdefault(" ".join([one.stage.origin, *cell]), []).append(one)
    return list(groups.items())


def _training(name: str, group: Sequence[Planned]) -> dict[str, Any] | None:
    """Curves of one training stage, a line a seed."""
    logged = [list(_lines(one, "metrics.jsonl")) for one in group]
    pictures: list[dict[str, Any]] = []
    for metric, english, chinese in CURVES:
        lines = [[(float(line["step"]), float(line[metric])) for line in run if metric in line] for run in logged]
        drawn = [
            svg.Curve(points, place if len(lines) > 1 else len(pictures))
            for place, points in enumerate(lines)
            if len(points) > 1
        ]
        if drawn:
            last = statistics.fmean(curve.points[-1][1] for curve in drawn)
            picture = Markup(svg.curves(drawn, title=english))
            pictures.append({"en": english, "zh": chinese, "svg": picture, "last": last})
    return {"name": name, "kind": group[0].stage.kind, "pictures": pictures} if pictures else None


def _lengths(one: Planned) -> dict[str, Any] | None:
    """How long completions are, right and wrong ones, and what they were paid."""
    name = STAGE_KINDS[one.kind].completions_file
    if name is None:
        return None
    right: list[float] = []
    wrong: list[float] = []
    values: list[float] = []
    for row in islice(_lines(one, name), MOST_COMPLETIONS):
        said = [verdict["value"] for verdict in row["verdicts"].values() if verdict.get("value") is not None]
        label = row.get("reward") if row.get("reward") in row["verdicts"] else next(iter(row["verdicts"]), None)
        value = row["verdicts"][label].get("value") if label else None
        (right if value is not None and value >= 1 else wrong).append(float(row["n_tokens"]))
        values.append(float(said[0]) if value is None and said else float(value or 0.0))
    if not right and not wrong:
        return None
    groups = [("right", right, 2), ("wrong", wrong, 1)]
    return {
        "name": one.stage.name,
        "tokens": Markup(svg.histogram(groups, title="tokens of right and wrong completions")),
        "values": Markup(svg.histogram([("reward", values, 0)], title="rewards")),
        "n_right": len(right),
        "n_wrong": len(wrong),
    }


def _samples(one: Planned) -> dict[str, Any] | None:
    """Completions to read: of RL those of the first and last batch, of an evaluation right and wrong ones in turn."""
    if STAGE_KINDS[one.kind].curve == "evaluation":
        by_value: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        # One a question: its samples are much alike.
        of_questions = {row["prompt_id"]: row for row in islice(_lines(one, "completions.jsonl"), MOST_COMPLETIONS)}
        for row in of_questions.values():
            by_value[(row["verdicts"].get(row.get("reward", ""), {}).get("value") or 0) >= 1].append(row)
        half = MOST_SAMPLES // 2
        chosen = [row for pair in zip(by_value[True][:half], by_value[False][:half], strict=False) for row in pair]
    else:
        rows = list(_lines(one, "samples.jsonl"))
        steps = sorted({row["step"] for row in rows})
        chosen = [row for row in rows if row["step"] in (*steps[:1], *steps[-1:])][: MOST_SAMPLES * 2]
    if not chosen:
        return None
    return {"name": one.stage.name, "kind": one.stage.kind, "rows": [_sample(row) for row in chosen]}


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    text = str(row["text"])
    thinking, answer = split_for_display(text)
    return {
        "step": row.get("step"),
        "id": row["prompt_id"],
        "mode": row.get("mode"),
        "prompt": [(turn["role"], _cut(turn["content"])) for turn in row["prompt"]],
        "thinking": _cut(thinking),
        "answer": _cut(answer),
        "gold": None if row.get("gold") is None else _cut(str(row["gold"])),
        "verdicts": [(name, one.get("value"), one.get("reason", "")) for name, one in row["verdicts"].items()],
        "advantage": row.get("advantage"),
        "value": row.get("value"),
        "tokens": row["n_tokens"],
        "finish": row["finish_reason"],
    }


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} […]"


def _data(one: Planned) -> dict[str, Any]:
    summary = one.folder.read_manifest()["summary"]
    return {
        "name": one.stage.name,
        "kind": one.stage.kind,
        "rows": summary.get("rows", 0),
        "dropped": summary.get("dropped") or {},
    }


def _lines(one: Planned, name: str) -> Iterator[dict[str, Any]]:
    path: Path = one.folder.path / name
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _cells(row: Row) -> list[str]:
    obeyed = row.others["obeyed_share"]
    return [
        row.stage + (" (control)" if row.is_control else ""),
        row.data,
        row.asked,
        f"{100 * row.mean:.1f} ± {100 * row.error:.1f}",
        str(len(row.values)),
        "" if obeyed is None else f"{100 * obeyed:.1f}",
        f"{row.others['mean_tokens']:.0f}",
    ]


HEADER = ["model", "set", "asked", "accuracy", "runs", "obeyed", "tokens"]


def _markdown(rows: Sequence[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *map(_cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _latex(rows: Sequence[Row]) -> str:
    """A booktabs table."""

    def escaped(text: str) -> str:
        return text.replace("\\", r"\textbackslash{}").replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")

    body = [" & ".join(escaped(cell).replace("±", r"$\pm$") for cell in _cells(row)) + r" \\" for row in rows]
    head = " & ".join(HEADER) + r" \\"
    return "\n".join(
        [r"\begin{tabular}{lllrrrr}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    )

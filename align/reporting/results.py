"""The report of a run: `report.json` for programs, `report.md`, `report.html` and a table for people."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qwen_align.align.pipeline.plan import Plan, Planned
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.files import read_json, write_json, write_text

# What a row of the ladder has; "evaluations" say more: cells of the matrix, pass@k, maj@k, format.
FIELDS = (
    "stage",
    "seed",
    "set",
    "switch",
    "mode",
    "accuracy",
    "stderr",
    "n_questions",
    "k",
    "obeyed_share",
    "stopped_share",
    "mean_tokens",
)
COLUMNS = ("model", "seed", "set", "asked", "accuracy", "pass@k", "obeyed", "stop", "tokens")


class Written(NamedTuple):
    """The report's contents; rows are in the order their stages run."""

    ladder: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    stages: list[dict[str, Any]]


class Measured(NamedTuple):
    """An evaluation's row, and the mean of each of its questions, if they are kept."""

    row: dict[str, Any]
    means: dict[str, float]


def write(planned: Plan) -> Written:
    """Writes report.json, report.md and report.html into runs/NAME from what is stored; nothing if nothing has run."""
    from qwen_align.align.reporting import html

    written = collect(planned)
    if planned.run_folder.exists():
        write_json(planned.run_folder / "report.json", written._asdict())
        write_text(planned.run_folder / "report.md", markdown(planned, written))
        write_text(planned.run_folder / "report.html", html.html(planned, written))
    return written


def collect(planned: Plan) -> Written:
    done = [one for one in planned.stages if one.is_stored]
    measured = [
        found for one in done if STAGE_KINDS[one.kind].curve == "evaluation" for found in _evaluated(one, planned)
    ]
    evaluations = [one.row for one in measured]
    rows = [({field: row[field] for field in FIELDS}, row["is_control"]) for row in evaluations]
    return Written(
        ladder=[row for row, is_control in rows if not is_control],
        controls=[row for row, is_control in rows if is_control],
        evaluations=evaluations,
        comparisons=list(_compared(measured, planned.recipe.report.compare)),
        stages=[_stage(one) for one in done],
    )


def _evaluated(one: Planned, planned: Plan) -> list[Measured]:
    origins = {stage.name: stage.origin for stage in planned.graph.stages}
    settings: Any = one.stage.settings
    model = one.stage.targets[settings.from_model]
    kept = one.folder.path / "questions.json"
    means = read_json(kept)["means"] if kept.exists() else []
    rows = [
        {
            **result,
            "stage": _name(model, one),
            # By place: the stored name is what the data was called when the stage ran.
            "set": _name(one.stage.targets[settings.from_data[place // len(settings.thinking_switches)]], one),
            "seed": one.stage.seed,
            "axes": {axis: value for axis, value in one.stage.axes.items() if axis != "round"},
            "is_control": origins.get(model, _name(model, one)) in planned.recipe.report.controls,
        }
        for place, result in enumerate(one.folder.read_manifest()["summary"]["results"])
    ]
    return [Measured(row, means[place] if means else {}) for place, row in enumerate(rows)]


def _compared(measured: Sequence[Measured], more: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Every model against the rung below it on the same questions, a control against the rung it stands beside, `more`.

    With several cells of a matrix (seeds, bases) each has its test, and all together have one over questions' means.
    """
    groups: dict[tuple[Any, ...], dict[str, dict[str, Measured]]] = {}
    for one in measured:
        asked = (one.row["set"], one.row["switch"], one.row["mode"])
        cell = json.dumps({"seed": one.row["seed"], **one.row["axes"]}, sort_keys=True)
        groups.setdefault(asked, {}).setdefault(cell, {})[one.row["stage"]] = one
    for (data, switch, mode), cells in groups.items():
        together: dict[tuple[str, str], list[tuple[dict[str, float], dict[str, float]]]] = {}
        for rungs in cells.values():
            for pair in dict.fromkeys(
                [*_neighbours(rungs.values(), chain(*more)), *((one, other) for one, other in more)]
            ):
                if not (pair[0] in rungs and pair[1] in rungs):
                    continue
                before, after = (rungs[name].means for name in pair)
                if after and after.keys() == before.keys():
                    together.setdefault(pair, []).append((before, after))
                    row = rungs[pair[1]].row
                    where = {"set": data, "switch": switch, "mode": mode, "seed": row["seed"]}
                    yield _comparison(pair, where, before, after, axes=row["axes"])
        for pair, both in together.items():
            if len(both) > 1 and len({frozenset(means) for cell in both for means in cell}) == 1:
                before, after = (_averaged([cell[side] for cell in both]) for side in (0, 1))
                where = {"set": data, "switch": switch, "mode": mode, "seed": None}
                yield _comparison(pair, where, before, after, axes={"cells": len(both)})


def _neighbours(rungs: Iterable[Measured], placed: Iterable[str]) -> Iterator[tuple[str, str]]:
    """A control that the recipe places elsewhere has no neighbour."""
    below, placed = None, set(placed)
    for name, is_control in ((one.row["stage"], one.row["is_control"]) for one in rungs):
        if below is not None and not (is_control and name in placed):
            yield below, name
        below = below if is_control else name


def _comparison(
    pair: tuple[str, str], where: dict[str, Any], before: dict[str, float], after: dict[str, float], *, axes: Any
) -> dict[str, Any]:
    from qwen_align.align.evaluation import statistics

    found = statistics.run_paired_test(before, after)
    return {
        "from": pair[0],
        "to": pair[1],
        **where,
        "axes": axes,
        "difference": found.difference,
        "stderr": found.se or 0.0,
        "p": found.p,
        "n_questions": found.n_questions,
    }


def _averaged(cells: Sequence[dict[str, float]]) -> dict[str, float]:
    return {question: sum(cell[question] for cell in cells) / len(cells) for question in cells[0]}


def _name(target: str, one: Planned) -> str:
    """The name in the recipe of what a stage reads, with the round of a repeat, without the cell of a matrix."""
    suffix = "".join(f".{axis}={value}" for axis, value in one.stage.axes.items() if axis != "round")
    return target.removesuffix(suffix)


def _stage(one: Planned) -> dict[str, Any]:
    manifest = one.folder.read_manifest()
    measured = ("seconds", "cpu_seconds", "import_seconds", "peak_rss_gib", "disk_gib")
    return {
        "name": one.stage.name,
        "kind": one.stage.kind,
        "key": one.key,
        **{field: manifest.get(field) for field in measured},
        "summary": {name: value for name, value in manifest["summary"].items() if name != "results"},
    }


def table(written: Written) -> Table:
    """The ladder and its controls, accuracy with its standard error; fits 80 columns."""
    whole = Table(title="accuracy ± standard error over questions", title_justify="left", box=SIMPLE_HEAD)
    whole.padding, whole.show_edge = (0, 1, 0, 0), False
    seeds = {row["seed"] for row in written.evaluations}
    shown = [number for number, column in enumerate(COLUMNS) if column != "seed" or len(seeds) > 1]
    for number in shown:
        left = COLUMNS[number] in ("model", "set", "asked")
        whole.add_column(COLUMNS[number], justify="left" if left else "right", no_wrap=True)
    for row in written.evaluations:
        cells = _cells(row)
        whole.add_row(*(cells[number] for number in shown))
    return whole


def _cells(row: dict[str, Any]) -> list[str]:
    asked = row["switch"] if row["mode"] is None else f"{row['switch']} {row['mode']}"
    cell = [f"{axis}={value}" for axis, value in row["axes"].items() if axis != "seed"]
    return [
        " ".join([row["stage"], *cell, *(["(control)"] if row["is_control"] else [])]),
        str(row["seed"]),
        row["set"],
        asked,
        f"{100 * row['accuracy']:.1f} ± {100 * row['stderr']:.1f}",
        f"{100 * row['pass_at_k']:.1f}",
        "" if row["obeyed_share"] is None else f"{100 * row['obeyed_share']:.1f}",
        f"{100 * row['stopped_share']:.1f}",
        f"{row['mean_tokens']:.0f}",
    ]


def markdown(planned: Plan, written: Written) -> str:
    """report.md: the ladder, what each stage took, and the settings to make it again."""
    title = planned.recipe.report.title or planned.recipe.name
    lines = [f"# {title}", ""]
    if written.evaluations:
        first = written.evaluations[0]
        lines += [
            f"Accuracy in percent: mean over k = {first['k']} samples a question, ± one standard error clustered by "
            "question. Obeyed: the share that thought, or did not, as asked.",
            "",
        ]
        lines += _markdown_table(list(COLUMNS), [_cells(row) for row in written.evaluations])
    if written.comparisons:
        lines += ["", "## Against each other", ""]
        lines += [
            "Paired by question: the mean difference in points ± one standard error, and the two-sided p of a "
            "permutation test.",
            "",
        ]
        header = ["from", "to", "seed", "set", "asked", "difference", "p"]
        lines += _markdown_table(header, [_compared_cells(one) for one in written.comparisons])
    lines += ["", "## Stages", ""]
    header = ["stage", "kind", "seconds", "of imports", "peak RSS GiB", "disk GiB", "key"]
    lines += _markdown_table(
        header,
        [
            [
                stage["name"],
                stage["kind"],
                f"{stage['seconds']:.1f}",
                f"{stage['import_seconds']:.1f}",
                f"{stage['peak_rss_gib']:.2f}",
                f"{stage['disk_gib']:.4f}",
                stage["key"][:16],
            ]
            for stage in written.stages
        ],
    )
    dropped = [
        [stage["name"], reason, str(count)]
        for stage in written.stages
        for reason, count in (stage["summary"].get("dropped") or {}).items()
    ]
    if dropped:
        lines += ["", "## Dropped rows", "", *_markdown_table(["stage", "reason", "rows"], dropped)]
    waiting = [one.stage.name for one in planned.stages if not one.is_stored]
    if waiting:
        lines += ["", f"Not run yet: {', '.join(waiting)}."]
    return "\n".join(lines) + "\n"


def _compared_cells(one: dict[str, Any]) -> list[str]:
    axes = {axis: value for axis, value in one["axes"].items() if axis not in ("seed", "cells")}
    cell = "".join(f", {axis}={value}" for axis, value in axes.items())
    seed = f"all {one['axes']['cells']}" if one["seed"] is None else f"{one['seed']}{cell}"
    asked = one["switch"] if one["mode"] is None else f"{one['switch']} {one['mode']}"
    difference = f"{100 * one['difference']:+.1f} ± {100 * one['stderr']:.1f}"
    return [one["from"], one["to"], seed, one["set"], asked, difference, f"{one['p']:.2g}"]


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]

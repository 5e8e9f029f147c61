"""The report of a run: `report.json` for programs, `report.md` and a table for people."""

from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qwen_align.align import store
from qwen_align.align.pipeline import Plan, Planned

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
    stages: list[dict[str, Any]]


def write(planned: Plan) -> Written:
    """Writes runs/NAME/report.json and report.md from what is stored now; nothing for a recipe never run."""
    written = collect(planned)
    if planned.run_folder.exists():
        store.write_json(planned.run_folder / "report.json", written._asdict())
        store.write_text(planned.run_folder / "report.md", markdown(planned, written))
    return written


def collect(planned: Plan) -> Written:
    done = [one for one in planned.stages if one.is_stored]
    evaluations = [row for one in done if one.stage.kind == "evaluate" for row in _evaluated(one, planned)]
    rows = [({field: row[field] for field in FIELDS}, row["is_control"]) for row in evaluations]
    return Written(
        ladder=[row for row, is_control in rows if not is_control],
        controls=[row for row, is_control in rows if is_control],
        evaluations=evaluations,
        stages=[_stage(one) for one in done],
    )


def _evaluated(one: Planned, planned: Plan) -> list[dict[str, Any]]:
    origins = {stage.name: stage.origin for stage in planned.graph.stages}
    settings: Any = one.stage.settings
    model = one.stage.targets[settings.from_model]
    return [
        {
            **result,
            "stage": _name(model, one),
            # By place: the stored name is what the data was called when the stage ran.
            "set": _name(one.stage.targets[settings.from_data[place // len(settings.switches)]], one),
            "seed": one.stage.seed,
            "axes": {axis: value for axis, value in one.stage.axes.items() if axis != "round"},
            "is_control": origins.get(model, _name(model, one)) in planned.recipe.report.controls,
        }
        for place, result in enumerate(one.folder.manifest()["summary"]["results"])
    ]


def _name(target: str, one: Planned) -> str:
    """The name in the recipe of what a stage reads, with the round of a repeat, without the cell of a matrix."""
    suffix = "".join(f".{axis}={value}" for axis, value in one.stage.axes.items() if axis != "round")
    return target.removesuffix(suffix)


def _stage(one: Planned) -> dict[str, Any]:
    manifest = one.folder.manifest()
    measured = ("seconds", "import_seconds", "peak_rss_gib", "disk_gib")
    return {
        "name": one.stage.name,
        "kind": one.stage.kind,
        "key": one.key,
        **{field: manifest[field] for field in measured},
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


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]

"""Collects the results of a run's stored stages: the content of report.json."""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.reporting.columns import RESULT_FIGURES, ResultRow, format_asked
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.files import read_json
from qwen_align.align.store.stage_folder import explain_damage
from qwen_align.align.store.verify_inputs import verify_outputs

# What a row of the ladder has; "evaluations" say more: cells of the matrix, pass@k, maj@k, format.
LADDER_FIELDS = (
    "stage",
    "seed",
    "set",
    "switch",
    "mode",
    "accuracy",
    "stderr",
    "mean_reward",
    "no_verdict",
    "n_questions",
    "k",
    "obeyed_share",
    "stopped_share",
    "mean_tokens",
)


QuestionMeans = dict[str, float | None]  # share of right completions by question, None without a verdict


class RunResults(NamedTuple):
    """The content of report.json. Rows are in the order their stages run."""

    ladder: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    stages: list[dict[str, Any]]


class EvaluationResult(NamedTuple):
    """The table row of an evaluation, and the share of right completions of each of its questions if stored.

    A question without a verdict has None.
    """

    row: dict[str, Any]
    question_means: dict[str, float | None]


def collect_results(plan: Plan) -> RunResults:
    """Collects the evaluations, comparisons and stage costs of all stored stages of a plan.

    Raises StageError for a stage whose files are damaged: there is no accuracy without its completions.
    """
    stored = [stage for stage in plan.stages if stage.is_stored]
    results: list[EvaluationResult] = []
    costs = []
    for stage in stored:
        with explain_damage(stage.name, stage.folder.path):
            if STAGE_KINDS[stage.kind].curve == "evaluation":
                results += _read_evaluation(stage, plan)
            costs.append(_read_stage_costs(stage))
    evaluations = [result.row for result in results]
    rows = [({field: row[field] for field in LADDER_FIELDS}, row["is_control"]) for row in evaluations]
    return RunResults(
        ladder=[row for row, is_control in rows if not is_control],
        controls=[row for row, is_control in rows if is_control],
        evaluations=evaluations,
        comparisons=list(_compare_models(results, plan.recipe.report.compare)),
        stages=costs,
    )


def to_result_row(evaluation: Mapping[str, Any]) -> ResultRow:
    """Converts one evaluation entry of report.json to a row of the results table."""
    return pool_seeds([evaluation])


def pool_by_seed(evaluations: Sequence[Mapping[str, Any]]) -> list[ResultRow]:
    """Groups evaluations of the same model, question set and thinking switch and returns one pooled row per group.

    The evaluations of a group differ by seed alone.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for evaluation in evaluations:
        name = (_name_model(evaluation), evaluation["set"], format_asked(evaluation))
        groups.setdefault(name, []).append(evaluation)
    return list(map(pool_seeds, groups.values()))


def pool_seeds(evaluations: Sequence[Mapping[str, Any]]) -> ResultRow:
    """Averages evaluations that differ only by seed into one result row.

    The error of one evaluation is its own, over questions; that of several is the standard error of their mean.
    """
    first = evaluations[0]
    accuracies = [float(evaluation["accuracy"]) for evaluation in evaluations]
    is_single = len(evaluations) == 1
    return ResultRow(
        model=_name_model(first),
        seed=first["seed"] if is_single else None,
        question_set=first["set"],
        asked=format_asked(first),
        is_control=bool(first["is_control"]),
        accuracy=statistics.fmean(accuracies),
        error=float(first["stderr"]) if is_single else statistics.stdev(accuracies) / sqrt(len(accuracies)),
        accuracy_by_seed=accuracies,
        figures={name: _average_or_none([row.get(name) for row in evaluations]) for name in RESULT_FIGURES},
    )


def _name_model(evaluation: Mapping[str, Any]) -> str:
    """Returns the model name of an evaluation with its matrix cell except the seed."""
    cell = [f"{axis}={value}" for axis, value in evaluation["axes"].items() if axis not in ("seed", "round")]
    return " ".join([evaluation["stage"], *cell])


def _average_or_none(figures: Sequence[float | None]) -> float | None:
    """Returns the mean of a list of numbers. Returns None if one of them is None."""
    known = [figure for figure in figures if figure is not None]
    return statistics.fmean(known) if len(known) == len(figures) else None


def _read_evaluation(stage: PlannedStage, plan: Plan) -> list[EvaluationResult]:
    """Verifies and reads a stored evaluation's results, under the model and data names of the current recipe.

    Raises StageError, KeyError, TypeError or ValueError for one whose files are damaged.
    """
    _verify_once(stage)
    origins = {graph_stage.name: graph_stage.origin for graph_stage in plan.graph.stages}
    settings: Any = stage.settings
    model = stage.targets[settings.from_model]
    questions_path = stage.folder.path / "questions.json"
    means = read_json(questions_path)["means"] if questions_path.exists() else []
    rows = [
        {
            **result,
            "stage": _find_recipe_name(model, stage),
            # By position: the stored name is what the data was called when the stage ran.
            "set": _find_recipe_name(
                stage.targets[settings.from_data[index // len(settings.thinking_switches)]], stage
            ),
            "seed": stage.seed,
            "axes": {axis: value for axis, value in stage.axes.items() if axis != "round"},
            "is_control": origins.get(model, _find_recipe_name(model, stage)) in plan.recipe.report.controls,
        }
        for index, result in enumerate(stage.folder.read_manifest()["summary"]["results"])
    ]
    for row in rows:
        if missing := [field for field in LADDER_FIELDS if field not in row]:
            raise KeyError(missing[0])
        to_result_row(row)
    return [EvaluationResult(row, means[index] if means else {}) for index, row in enumerate(rows)]


_verified: set[tuple[Any, ...]] = set()


def _verify_once(stage: PlannedStage) -> None:
    """Verifies the files of a stored evaluation, unless this process has done so and they are unchanged."""
    paths = sorted(path for path in stage.folder.path.iterdir() if path.is_file())
    identity = (stage.folder.path.resolve(), *((path.name, *_get_identity(path)) for path in paths))
    if identity not in _verified:
        verify_outputs(stage.name, stage.folder.path)
        _verified.add(identity)


def _get_identity(path: Path) -> tuple[int, int, int]:
    """Returns what changes when a file is written: its inode, size and modification time."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _compare_models(
    results: Sequence[EvaluationResult], more_pairs: Sequence[Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """Yields paired tests of every model against the previous one, and of the pairs that the recipe lists.

    Both models answer the same questions.

    With several cells of a matrix (seeds, bases) each has its test, and all together have one over questions' means.
    Questions that one of the models has no verdict of are left out; `n_questions` says how many are compared.
    """
    groups: dict[tuple[Any, ...], dict[str, dict[str, EvaluationResult]]] = {}
    for result in results:
        asked = (result.row["set"], result.row["switch"], result.row["mode"])
        cell = json.dumps({"seed": result.row["seed"], **result.row["axes"]}, sort_keys=True)
        groups.setdefault(asked, {}).setdefault(cell, {})[result.row["stage"]] = result
    for (question_set, switch, mode), cells in groups.items():
        means_by_pair: dict[tuple[str, str], list[tuple[QuestionMeans, QuestionMeans]]] = {}
        for rungs in cells.values():
            neighbours = _pair_neighbours(rungs.values(), chain(*more_pairs))
            for pair in dict.fromkeys([*neighbours, *((lower, upper) for lower, upper in more_pairs)]):
                if not (pair[0] in rungs and pair[1] in rungs):
                    continue
                before, after = (rungs[name].question_means for name in pair)
                if _list_shared_questions(before, after) and before.keys() == after.keys():
                    means_by_pair.setdefault(pair, []).append((before, after))
                    row = rungs[pair[1]].row
                    conditions = {"set": question_set, "switch": switch, "mode": mode, "seed": row["seed"]}
                    yield _compare_pair(pair, conditions, before, after, axes=row["axes"])
        for pair, cell_means in means_by_pair.items():
            if len(cell_means) > 1 and len({frozenset(means) for cell in cell_means for means in cell}) == 1:
                before, after = (_average_cells([cell[side] for cell in cell_means]) for side in (0, 1))
                if not _list_shared_questions(before, after):
                    continue
                conditions = {"set": question_set, "switch": switch, "mode": mode, "seed": None}
                yield _compare_pair(pair, conditions, before, after, axes={"cells": len(cell_means)})


def _pair_neighbours(rungs: Iterable[EvaluationResult], placed: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields each evaluated model paired with the previous one in the recipe's order.

    A control that the recipe compares elsewhere is left out.
    """
    below, placed = None, set(placed)
    for name, is_control in ((result.row["stage"], result.row["is_control"]) for result in rungs):
        if below is not None and not (is_control and name in placed):
            yield below, name
        below = below if is_control else name


def _compare_pair(
    pair: tuple[str, str],
    conditions: dict[str, Any],
    before: QuestionMeans,
    after: QuestionMeans,
    *,
    axes: Any,
) -> dict[str, Any]:
    """Runs the paired test of two models over question means and returns it as a report.json entry."""
    from qwen_align.align.evaluation import statistics as evaluation_statistics

    shared = _list_shared_questions(before, after)
    test = evaluation_statistics.run_paired_test(
        {question: means[0] for question, means in shared.items()},
        {question: means[1] for question, means in shared.items()},
    )
    return {
        "from": pair[0],
        "to": pair[1],
        **conditions,
        "axes": axes,
        "difference": test.difference,
        "stderr": test.se or 0.0,
        "p": test.p,
        "n_questions": test.n_questions,
    }


def _list_shared_questions(before: QuestionMeans, after: QuestionMeans) -> dict[str, tuple[float, float]]:
    """Returns the means of the questions that both models have a verdict of."""
    pairs = {question: (mean, after.get(question)) for question, mean in before.items()}
    return {question: (a, b) for question, (a, b) in pairs.items() if a is not None and b is not None}


def _average_cells(cells: Sequence[QuestionMeans]) -> QuestionMeans:
    """Averages each question's mean over several matrix cells. It is None where one of them has no verdict."""
    return {question: _average_or_none([cell[question] for cell in cells]) for question in cells[0]}


def _find_recipe_name(target: str, stage: PlannedStage) -> str:
    """Returns the recipe name of a stage's input, with its repeat round but without its matrix cell."""
    suffix = "".join(f".{axis}={value}" for axis, value in stage.axes.items() if axis != "round")
    return target.removesuffix(suffix)


def _read_stage_costs(stage: PlannedStage) -> dict[str, Any]:
    """Returns the run time, size and summary of a stored stage for the report."""
    manifest = stage.folder.read_manifest()
    costs = ("seconds", "cpu_seconds", "import_seconds", "peak_rss_gib", "disk_gib")
    return {
        "name": stage.name,
        "kind": stage.kind,
        "key": stage.key,
        **{field: manifest.get(field) for field in costs},
        "measured": manifest.get("measured", {}),
        "summary": {name: value for name, value in manifest["summary"].items() if name != "results"},
    }

"""Writes the report of a run into runs/NAME: report.json for programs, report.md and report.html for readers."""

from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.reporting.columns import (
    COMPARISON_COLUMNS,
    COMPARISONS,
    DATA_COLUMNS,
    DROPS_IN_TEXT,
    LEFT_OUT_IN_TEXT,
    RESULT_COLUMNS,
    RESULTS_IN_TEXT,
    STAGE_COLUMNS,
    STAGES_IN_TEXT,
    Table,
    choose_result_columns,
    format_table,
)
from qwen_align.align.reporting.html import render_page
from qwen_align.align.reporting.markdown import format_markdown_table
from qwen_align.align.reporting.results import RunResults, collect_results, to_result_row
from qwen_align.align.reporting.summary_line import list_left_out_columns
from qwen_align.align.store.files import write_json, write_text
from qwen_align.align.store.run_folders import read_record


def write_report(plan: Plan) -> RunResults:
    """Writes the report files of a plan from its stored stages and returns the results.

    report.json, report.md and report.html are written if the recipe was ever run.
    """
    results = collect_results(plan)
    if plan.run_folder.exists():
        write_json(plan.run_folder / "report.json", results._asdict())
        write_text(plan.run_folder / "report.md", format_report(plan, results))
        write_text(plan.run_folder / "report.html", render_page(plan, results))
    return results


def format_report(plan: Plan, results: RunResults) -> str:
    """Renders the text of report.md: accuracies, comparisons, stage costs, dropped rows and left-out columns."""
    parts = [f"# {plan.recipe.report.title or plan.recipe.name}\n"]
    rows = list(map(to_result_row, results.evaluations))
    if rows:
        parts += [
            f"Accuracy in percent: the share with a reward of 1 among k = {results.evaluations[0]['k']} completions a "
            "question, ± one standard error clustered by question. No verdict: completions that count neither as right "
            "nor as wrong. Obeyed: the share that thought, or did not, as asked.\n",
            _format_section(format_table(RESULT_COLUMNS, choose_result_columns(RESULTS_IN_TEXT, rows), rows)),
        ]
    if results.comparisons:
        parts += [
            "## Against each other\n",
            "Paired by question: the mean difference in points ± one standard error, and the two-sided p of a "
            "permutation test.\n",
            _format_section(format_table(COMPARISON_COLUMNS, COMPARISONS, results.comparisons)),
        ]
    if not results.evaluations and not results.comparisons:
        parts.append("")
    parts += ["## Stages\n", _format_section(format_table(STAGE_COLUMNS, STAGES_IN_TEXT, results.stages))]
    drops = [
        {"name": stage["name"], "reason": reason, "count": count}
        for stage in results.stages
        for reason, count in (stage["summary"].get("dropped") or {}).items()
    ]
    if drops:
        parts += ["## Dropped rows\n", _format_section(format_table(DATA_COLUMNS, DROPS_IN_TEXT, drops))]
    left_out = [
        {"name": stage["name"], "column": column, "count": count}
        for stage in results.stages
        for column, count in list_left_out_columns(stage["summary"]).items()
    ]
    if left_out:
        table = format_table(DATA_COLUMNS, LEFT_OUT_IN_TEXT, left_out)
        parts += ["## Columns of the sources that were left out\n", _format_section(table)]
    record = read_record(plan.run_folder)
    if record and record.failure:
        parts.append(f"The run failed: {record.failure}\n")
    waiting = [stage.name for stage in plan.stages if not stage.is_stored]
    if waiting:
        parts.append(f"Not run yet: {', '.join(waiting)}.\n")
    return "\n".join(parts).rstrip("\n") + "\n"


def _format_section(table: Table) -> str:
    return format_markdown_table(table.headings, table.cells) + "\n"

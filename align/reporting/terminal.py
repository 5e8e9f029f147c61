"""Builds the table of results for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qwen_align.align.reporting.columns import RESULT_COLUMNS, RESULTS_IN_TEXT, format_table
from qwen_align.align.reporting.results import RunResults, to_result_row


def build_results_table(results: RunResults) -> Table:
    """Builds the terminal's table of accuracies with standard errors, at most 80 columns wide.

    A single seed is not shown.
    """
    has_several_seeds = len({evaluation["seed"] for evaluation in results.evaluations}) > 1
    names = [name for name in RESULTS_IN_TEXT if name != "seed" or has_several_seeds]
    text = format_table(RESULT_COLUMNS, names, map(to_result_row, results.evaluations))
    table = Table(title="accuracy ± standard error over questions", title_justify="left", box=SIMPLE_HEAD)
    table.padding, table.show_edge = (0, 1, 0, 0), False
    for heading, is_number in zip(text.headings, text.is_number, strict=True):
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    for cells in text.cells:
        table.add_row(*cells)
    return table

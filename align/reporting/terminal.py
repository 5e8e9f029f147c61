"""Builds the table of results for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qwen_align.align.reporting.columns import RESULT_COLUMNS, RESULTS_IN_TEXT, choose_result_columns, format_table
from qwen_align.align.reporting.results import RunResults, to_result_row


def build_results_table(results: RunResults) -> Table:
    """Builds the terminal's table of accuracies with standard errors, at most 80 columns wide.

    A single seed is not shown. Where there is no room, text is broken into lines and numbers are not.
    """
    has_several_seeds = len({evaluation["seed"] for evaluation in results.evaluations}) > 1
    rows = list(map(to_result_row, results.evaluations))
    names = [name for name in choose_result_columns(RESULTS_IN_TEXT, rows) if name != "seed" or has_several_seeds]
    text = format_table(RESULT_COLUMNS, names, rows)
    table = Table(title="accuracy ± standard error over questions", title_justify="left", box=SIMPLE_HEAD)
    table.padding, table.show_edge = (0, 1, 0, 0), False
    for heading, is_number in zip(text.headings, text.is_number, strict=True):
        if is_number:
            table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
        else:
            table.add_column(heading, overflow="fold", vertical="bottom")
    for cells in text.cells:
        table.add_row(*cells)
    return table

"""Builds the table of results for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from qwen_align.align.reporting.columns import (
    RESULT_COLUMNS,
    RESULTS_IN_TEXT,
    Table,
    choose_result_columns,
    format_table,
)
from qwen_align.align.reporting.results import RunResults, to_result_row

LEAST_TEXT_WIDTH = 5  # to which a narrow terminal folds the names
UNLIMITED = 1000  # columns, of a file or a pipe


def print_results_table(console: Console, results: RunResults) -> None:
    """Prints the table of accuracies with standard errors. No number is cut.

    A narrow terminal folds names and leaves out the last columns, and says so; a file or a pipe has whole lines.
    """
    if not console.is_terminal:
        console.print(render_results_table(results), end="", soft_wrap=True)
        return
    text = _format_results(results)
    n_columns = _count_fitting_columns(text, console.width)
    console.print(build_results_table(text, n_columns, folds_headings=True))
    if left_out := text.headings[n_columns:]:
        console.print(f"left out in {console.width} columns: {', '.join(left_out)}", style="dim")


def render_results_table(results: RunResults) -> str:
    """Renders the table of accuracies as plain text in whole lines."""
    console = Console(width=UNLIMITED, highlight=False, markup=False, emoji=False, force_jupyter=False)
    text = _format_results(results)
    with console.capture() as captured:
        console.print(build_results_table(text, len(text.headings)))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _format_results(results: RunResults) -> Table:
    """Formats the cells of the table of accuracies. A single seed is not shown."""
    has_several_seeds = len({evaluation["seed"] for evaluation in results.evaluations}) > 1
    rows = list(map(to_result_row, results.evaluations))
    names = [name for name in choose_result_columns(RESULTS_IN_TEXT, rows) if name != "seed" or has_several_seeds]
    return format_table(RESULT_COLUMNS, names, rows)


def build_results_table(text: Table, n_columns: int, *, folds_headings: bool = False) -> RichTable:
    """Builds the table of the first columns of the results. Names fold where they have no room.

    `folds_headings`: whether the words of a number's heading stand below each other.
    """
    table = RichTable(title="accuracy ± standard error over questions", title_justify="left", box=SIMPLE_HEAD)
    table.padding, table.show_edge = (0, 1, 0, 0), False
    for heading, is_number in list(zip(text.headings, text.is_number, strict=True))[:n_columns]:
        if is_number:
            shown = heading.replace(" ", "\n") if folds_headings else heading
            table.add_column(shown, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    for cells in text.cells:
        table.add_row(*cells[:n_columns])
    return table


def _count_fitting_columns(text: Table, width: int) -> int:
    """Returns how many of the columns fit into a width. Names take as little as they can be folded to."""
    needed = []
    for index, is_number in enumerate(text.is_number):
        words = text.headings[index].split() if is_number else [text.headings[index]]
        widest = max(map(cell_len, [*words, *(cells[index] for cells in text.cells)]))
        needed.append(2 + (widest if is_number else min(widest, LEAST_TEXT_WIDTH)))
    return max(n for n in range(1, len(needed) + 1) if n == 1 or sum(needed[:n]) <= width)

"""Defines the columns of all report tables: headings in English and Chinese, cell format and alignment.

The terminal's table, report.md, the page and its Markdown and LaTeX copies each choose from these by name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

RowType = TypeVar("RowType")


class ResultRow(NamedTuple):
    """The result of one model on one question set under one thinking switch, of one seed or pooled over seeds.

    `seed` is None if pooled.

    error: one standard error of the accuracy. figures: by name of the evaluation, None where a seed has no such figure.
    """

    model: str
    seed: int | None
    question_set: str
    asked: str
    is_control: bool
    accuracy: float
    error: float
    accuracy_by_seed: list[float]
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Column(Generic[RowType]):
    """A column of a report table, with its headings.

    `heading` is for the terminal, report.md and copies, `page_heading` and `chinese` for the HTML page.

    Without `page_heading` the page has `heading`, without `chinese` both languages have the same. `format_on_page`: the
    cell on the page where it differs.
    """

    heading: str
    format_cell: Callable[[RowType], str]
    is_number: bool = True
    page_heading: str = ""
    chinese: str = ""
    format_on_page: Callable[[RowType], str] | None = None

    def format_page_cell(self, row: RowType) -> str:
        """Formats the cell of a row for the HTML page."""
        return (self.format_on_page or self.format_cell)(row)


def _format_percent(share: float | None) -> str:
    """Formats a share from 0 to 1 as a percentage."""
    return "" if share is None else f"{100 * share:.1f}"


def _format_number(number: float | None) -> str:
    """Formats a number that is no share with three significant digits."""
    return "" if number is None else f"{number:.3g}"


def _format_count(count: float | None) -> str:
    """Formats a count, or the mean count of several runs."""
    return "" if count is None else f"{count:,.0f}" if count == int(count) else f"{count:,.1f}"


def _format_points(difference: float, error: float, sign: str = "") -> str:
    return f"{100 * difference:{sign}.1f} ± {100 * error:.1f}"


def _format_seed(comparison: Mapping[str, Any]) -> str:
    if comparison["seed"] is None:
        return f"all {comparison['axes']['cells']}"
    other_axes = {axis: value for axis, value in comparison["axes"].items() if axis != "seed"}
    return f"{comparison['seed']}" + "".join(f", {axis}={value}" for axis, value in other_axes.items())


def format_asked(result: Mapping[str, Any]) -> str:
    """Returns the thinking switch of an evaluation result as text, with its mode if it sets one."""
    return f"{result['switch']}" if result["mode"] is None else f"{result['switch']} {result['mode']}"


RESULT_COLUMNS: dict[str, Column[ResultRow]] = {
    "model": Column(
        "model",
        lambda row: row.model + (" (control)" if row.is_control else ""),
        is_number=False,
        chinese="模型",
        format_on_page=lambda row: row.model,
    ),
    "seed": Column("seed", lambda row: str(row.seed), chinese="种子"),
    "set": Column("set", lambda row: row.question_set, is_number=False, page_heading="questions", chinese="题集"),
    "asked": Column("asked", lambda row: row.asked, is_number=False, page_heading="asked to", chinese="要求"),
    "accuracy": Column("accuracy", lambda row: _format_points(row.accuracy, row.error), chinese="正确率"),
    "runs": Column("runs", lambda row: str(len(row.accuracy_by_seed)), chinese="运行数"),
    "pass_at_k": Column("pass@k", lambda row: _format_percent(row.figures["pass_at_k"])),
    "maj_at_k": Column("maj@k", lambda row: _format_percent(row.figures["maj_at_k"])),
    "mean_reward": Column("reward", lambda row: _format_number(row.figures["mean_reward"]), chinese="平均奖励"),
    "no_verdict": Column("no verdict", lambda row: _format_count(row.figures["no_verdict"]), chinese="无判定"),
    "obeyed_share": Column("obeyed", lambda row: _format_percent(row.figures["obeyed_share"]), chinese="听从率"),
    "stopped_share": Column(
        "stop", lambda row: _format_percent(row.figures["stopped_share"]), page_heading="stopped", chinese="停止率"
    ),
    "mean_tokens": Column("tokens", lambda row: f"{row.figures['mean_tokens']:.0f}", chinese="token 数"),
}
RESULT_FIGURES = (
    "mean_reward",
    "pass_at_k",
    "maj_at_k",
    "no_verdict",
    "obeyed_share",
    "stopped_share",
    "mean_tokens",
)
RESULTS_IN_TEXT = (
    "model",
    "seed",
    "set",
    "asked",
    "accuracy",
    "mean_reward",
    "pass_at_k",
    "no_verdict",
    "obeyed_share",
    "stopped_share",
    "mean_tokens",
)
RESULTS_ON_PAGE = ("model", "set", "asked", "accuracy", "runs", *RESULT_FIGURES)
RESULTS_IN_COPIES = (
    "model",
    "set",
    "asked",
    "accuracy",
    "mean_reward",
    "runs",
    "no_verdict",
    "obeyed_share",
    "mean_tokens",
)


def choose_result_columns(names: Sequence[str], rows: Sequence[ResultRow]) -> list[str]:
    """Returns the names of the result columns to show.

    The mean reward is left out where it is the accuracy in every row, as with rewards that are 0 or 1.
    """
    is_accuracy = all(row.figures["mean_reward"] in (None, row.accuracy) for row in rows)
    return [name for name in names if name != "mean_reward" or not is_accuracy]


# Rows are those of report.json from here on.
COMPARISON_COLUMNS: dict[str, Column[Mapping[str, Any]]] = {
    "from": Column("from", lambda row: row["from"], is_number=False, chinese="从"),
    "to": Column("to", lambda row: row["to"], is_number=False, chinese="到"),
    "seed": Column("seed", _format_seed, is_number=False, chinese="种子"),
    "set": Column("set", lambda row: row["set"], is_number=False, page_heading="questions", chinese="题集"),
    "asked": Column("asked", format_asked, is_number=False, page_heading="asked to", chinese="要求"),
    "difference": Column(
        "difference",
        lambda row: _format_points(row["difference"], row["stderr"], "+"),
        page_heading="points",
        chinese="百分点",
    ),
    "p": Column(
        "p",
        lambda row: f"{row['p']:.2g}",
        format_on_page=lambda row: "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}",
    ),
}
COMPARISONS = tuple(COMPARISON_COLUMNS)

STAGE_COLUMNS: dict[str, Column[Mapping[str, Any]]] = {
    "name": Column("stage", lambda row: row["name"], is_number=False, chinese="阶段"),
    "kind": Column("kind", lambda row: row["kind"], is_number=False, chinese="类型"),
    "seconds": Column("seconds", lambda row: f"{row['seconds']:.1f}", chinese="秒"),
    "import_seconds": Column("of imports", lambda row: f"{row['import_seconds']:.1f}"),
    "cpu_seconds": Column(
        "CPU seconds",
        lambda row: "" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.1f}",
        chinese="CPU 秒",
    ),
    "peak_rss_gib": Column(
        "peak RSS GiB",
        lambda row: f"{row['peak_rss_gib']:.2f}",
        page_heading="peak memory, GiB",
        chinese="内存峰值 GiB",
    ),
    "disk_gib": Column("disk GiB", lambda row: f"{row['disk_gib']:.4f}"),
    "disk_mib": Column(
        "disk MiB", lambda row: f"{1024 * row['disk_gib']:.2f}", page_heading="disk, MiB", chinese="磁盘 MiB"
    ),
    "key": Column("key", lambda row: row["key"][:16], is_number=False),
}
STAGES_IN_TEXT = ("name", "kind", "seconds", "import_seconds", "peak_rss_gib", "disk_gib", "key")
STAGES_ON_PAGE = ("name", "kind", "seconds", "cpu_seconds", "peak_rss_gib", "disk_mib")

DATA_COLUMNS: dict[str, Column[Mapping[str, Any]]] = {
    "name": Column("stage", lambda row: row["name"], is_number=False, chinese="阶段"),
    "kind": Column("kind", lambda row: row["kind"], is_number=False, chinese="类型"),
    "reason": Column("reason", lambda row: row["reason"], is_number=False),
    "count": Column("rows", lambda row: str(row["count"])),
    "rows": Column("rows", lambda row: f"{row['rows']:,}", chinese="行数"),
    # The page shows these as one label a reason.
    "dropped": Column(
        "dropped",
        lambda row: str(row["dropped"]),
        is_number=False,
        page_heading="dropped, by reason",
        chinese="丢弃及原因",
    ),
    "column": Column("column", lambda row: row["column"], is_number=False),
    "left_out": Column(
        "left out",
        lambda row: str(row["left_out"]),
        is_number=False,
        page_heading="columns left out, in rows",
        chinese="未读取的列及行数",
    ),
}
DROPS_IN_TEXT = ("name", "reason", "count")
LEFT_OUT_IN_TEXT = ("name", "column", "count")
DATA_ON_PAGE = ("name", "kind", "rows", "dropped", "left_out")


class Table(NamedTuple):
    """A table of text: headings and cells. `is_number` says which columns are aligned to the right."""

    headings: list[str]
    cells: list[list[str]]
    is_number: list[bool]


def format_table(table: Mapping[str, Column[RowType]], names: Sequence[str], rows: Iterable[RowType]) -> Table:
    """Formats the chosen columns of all rows as a table of text."""
    columns = [table[name] for name in names]
    cells = [[column.format_cell(row) for column in columns] for row in rows]
    return Table([column.heading for column in columns], cells, [column.is_number for column in columns])

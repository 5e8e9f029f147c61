"""The tables of reports: Markdown is written in one place, and the columns are listed in one place."""

import ast
import re
from pathlib import Path

from qwen_align.align.reporting import columns
from qwen_align.align.reporting.markdown import format_markdown_table

ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / "cli.py",
    *(path for top in ("align", "reward", "data_builders") for path in (ROOT / top).rglob("*.py")),
]
RULE = re.compile(r"\|\s*-{3,}\s*\||[\"']-{3,}[\"']")  # the line below a Markdown table's headings


def list_texts(node: ast.AST) -> set[str]:
    """Returns the strings of a list, tuple or set that holds nothing else."""
    items = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else []
    texts = [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return set(texts) if len(texts) == len(items) else set()


def test_one_module_writes_markdown_tables() -> None:
    writers = [str(path.relative_to(ROOT)) for path in FILES if RULE.search(path.read_text(encoding="utf-8"))]
    assert writers == ["align/reporting/markdown.py"]


def test_one_module_lists_the_columns_of_reports() -> None:
    tables = [value for name, value in vars(columns).items() if name.endswith("_COLUMNS")]
    assert len(tables) == 4
    for path in FILES:
        if path == Path(columns.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for table in tables:
                shared = list_texts(node) & {column.heading for column in table.values()}
                assert len(shared) < 4, f"{path.relative_to(ROOT)}:{node.lineno} lists {sorted(shared)}"  # type: ignore[attr-defined]
    page = (ROOT / "align/reporting/page.html.j2").read_text(encoding="utf-8")
    assert page.count("<th") == 2, "the page's headings come from the columns"


def test_a_cell_cannot_end_its_column() -> None:
    assert format_markdown_table(["a", "b"], [["x|y", "z"]]) == "| a | b |\n| --- | --- |\n| x\\|y | z |"

"""notebooks/quickstart.ipynb runs from top to bottom as its words say, and holds no outputs."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def test_its_outputs_are_left_out() -> None:
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_its_links_lead_somewhere() -> None:
    text = "\n".join(cell.source for cell in read_notebook().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = read_notebook()
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = ["".join(_texts(cell)) for cell in notebook.cells if cell.cell_type == "code"]
    planned, ran, table, completions, reworded, answer = outputs[-6:]
    assert "8 stages, 8 to run" in planned
    assert re.search(r"^8/8  eval_grpo +evaluate +\d+\.\d s", ran, flags=re.MULTILINE), ran
    accuracies = [
        float(number) for number in re.findall(r"^\d +(?:base|sft|grpo) +(\d\.\d+)", table, flags=re.MULTILINE)
    ]
    base, sft, grpo = accuracies
    assert base < 0.1
    assert sft > 0.4
    assert grpo > 0.5
    assert "rows:1" in completions
    assert re.fullmatch(r"\d\.\d\d ± \d\.\d\d\n", reworded.splitlines(keepends=True)[-1])
    assert re.search(r"21\+34=\d+", answer), answer


def _texts(cell: Any) -> list[str]:
    """What a cell printed, showed and returned, updates of its displays included."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type in ("execute_result", "display_data"):
            texts.append(output.data.get("text/plain", ""))
    return texts

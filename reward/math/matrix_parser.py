"""The cells of a matrix or determinant, as text."""

import re

from qwen_align.reward.math.bracket_aware_split import relation_sides
from qwen_align.reward.math.latex_normalization import ROW_BREAK

_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|smallmatrix|array)\}((?:(?!\\begin|\\end).)*)\\end\{\1\}")
_KINDS = {"vmatrix": "determinant", "Vmatrix": "norm"}
_COLUMNS = re.compile(r"\s*\{[lcr| ]*\}")


def matrix_cells(text: str) -> tuple[str, list[list[str]]] | None:
    """The kind ("matrix", "determinant", "norm") and the cells, with a factor before a matrix multiplied in."""
    found = _MATRIX.search(text)
    if found is None or found.end() != len(text):
        return _fenced(text)
    factor = text[: found.start()].strip().removesuffix(r"\cdot").strip()
    body = _COLUMNS.sub("", found[2], count=1) if found[1] == "array" else found[2]
    rows = [row.strip() for row in body.replace(r"\hline", "").split(ROW_BREAK)]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows if row]
    kind = _KINDS.get(found[1], "matrix")
    if factor:
        if kind != "matrix" or relation_sides(factor)[1]:
            return None
        factor = "-1" if factor == "-" else factor
        cells = [[f"({factor})\\cdot({cell})" for cell in row] for row in cells]
    return (kind, cells) if cells else None


def _fenced(text: str) -> tuple[str, list[list[str]]] | None:
    """A matrix between brackets of its own: `[\\begin{array}...\\end{array}]`."""
    if text[:1] not in ("(", "[", "|") or text[-1:] not in (")", "]", "|"):
        return None
    inner = text[1:-1].strip()
    found = matrix_cells(inner) if inner.startswith(r"\begin{") else None
    return ("determinant", found[1]) if found is not None and text[0] == "|" else found

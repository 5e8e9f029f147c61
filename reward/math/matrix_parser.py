"""Splits a LaTeX matrix or determinant into the texts of its cells."""

import re

from qwen_align.reward.math.bracket_aware_split import split_relations
from qwen_align.reward.math.latex_normalization import ROW_BREAK

_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|smallmatrix|array)\}((?:(?!\\begin|\\end).)*)\\end\{\1\}")
_ENVIRONMENT_KINDS = {"vmatrix": "determinant", "Vmatrix": "norm"}
_TRANSPOSED = re.compile(r" ?\^ ?(?:T|\{ ?T ?\})\Z")
_COLUMN_SPEC = re.compile(r"\s*\{[lcr| ]*\}")


def parse_matrix_cells(text: str) -> tuple[str, list[list[str]]] | None:
    """Returns the kind ("matrix", "determinant", "norm") and the cell texts of a LaTeX matrix.

    Returns None if the text is not a matrix. A factor before a matrix is multiplied into its cells.
    """
    if transposed := _TRANSPOSED.search(text):
        return _transpose(parse_matrix_cells(text[: transposed.start()].rstrip()))
    match = _MATRIX.search(text)
    if match is None or match.end() != len(text):
        return _parse_bracketed_matrix(text)
    factor = text[: match.start()].strip().removesuffix(r"\cdot").strip()
    body = _COLUMN_SPEC.sub("", match[2], count=1) if match[1] == "array" else match[2]
    rows = [row.strip() for row in body.replace(r"\hline", "").split(ROW_BREAK)]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows if row]
    kind = _ENVIRONMENT_KINDS.get(match[1], "matrix")
    if factor:
        if kind != "matrix" or split_relations(factor)[1]:
            return None
        factor = "-1" if factor == "-" else factor
        cells = [[f"({factor})\\cdot({cell})" for cell in row] for row in cells]
    return (kind, cells) if cells else None


def _parse_bracketed_matrix(text: str) -> tuple[str, list[list[str]]] | None:
    r"""Parses a LaTeX matrix inside explicit brackets, such as `[\begin{array}...\end{array}]`."""
    if text[:1] not in ("(", "[", "|") or text[-1:] not in (")", "]", "|"):
        return None
    inner = text[1:-1].strip()
    kind_and_cells = parse_matrix_cells(inner) if inner.startswith(r"\begin{") else None
    return ("determinant", kind_and_cells[1]) if kind_and_cells is not None and text[0] == "|" else kind_and_cells


def _transpose(kind_and_cells: tuple[str, list[list[str]]] | None) -> tuple[str, list[list[str]]] | None:
    """Returns the transposed matrix. Returns None for anything that is no matrix."""
    if kind_and_cells is None or kind_and_cells[0] != "matrix" or len(set(map(len, kind_and_cells[1]))) != 1:
        return None
    return "matrix", [list(column) for column in zip(*kind_and_cells[1], strict=True)]

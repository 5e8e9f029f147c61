"""Formats tables in LaTeX, in the style of booktabs."""

from collections.abc import Sequence

_ESCAPES = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "±": r"$\pm$"}


def format_latex_table(headings: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool]) -> str:
    """Formats a table as a LaTeX `tabular`. Columns of numbers are aligned to the right."""
    body = [" & ".join(map(_escape, row)) + r" \\" for row in rows]
    alignment = "".join("r" if column_is_number else "l" for column_is_number in is_number)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(headings) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _escape(text: str) -> str:
    """Escapes the special characters of LaTeX in a text."""
    return "".join(_ESCAPES.get(character, character) for character in text)

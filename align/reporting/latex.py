"""Tables in LaTeX, in the style of booktabs."""

from collections.abc import Sequence

_ESCAPES = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "±": r"$\pm$"}


def format_latex_table(headings: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool]) -> str:
    """Returns a `tabular`; columns of numbers are aligned to the right."""
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
    return "".join(_ESCAPES.get(character, character) for character in text)

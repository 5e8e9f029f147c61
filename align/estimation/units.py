"""Reads and writes sizes of memory, with GB (10^9 bytes) and GiB (2^30 bytes) told apart."""

import re

from qwen_align.align.errors import RecipeError

GB, GIB = 10**9, 2**30
_UNITS = {"MB": 10**6, "GB": GB, "TB": 10**12, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
_BY_LOWER_CASE = {unit.lower(): n_bytes for unit, n_bytes in _UNITS.items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


def parse_size(text: str) -> int:
    """Parses a size such as `24GB` (24 x 10^9 bytes) or `24GiB` (24 x 2^30), in upper or lower case, into bytes.

    Raises RecipeError for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or found[2].lower() not in _BY_LOWER_CASE or float(found[1]) == 0:
        raise RecipeError(
            f"'{text}': not an amount of memory; write 24GB (24 x 10^9 bytes) or 24GiB (24 x 2^30 bytes), and for a "
            "card by its name what it has, such as 80GB for an A100"
        )
    return round(float(found[1]) * _BY_LOWER_CASE[found[2].lower()])


def parse_cards(text: str) -> tuple[int, int]:
    """Parses a number of GPUs and the size of each, such as `8x80GB`. Raises RecipeError for anything else."""
    count, cross, size = text.lower().replace("×", "x").partition("x")
    if not cross or not size.strip() or not count.strip().isdigit() or int(count) == 0:
        raise RecipeError(f"'{text}': write the number of GPUs and the memory of each, such as 8x80GB")
    return int(count), parse_size(size)


def format_gib(n_bytes: float) -> str:
    """Formats bytes as GiB with two decimals below 10 and one above."""
    gib = n_bytes / GIB
    return f"{gib:.2f}" if gib < 9.995 else f"{gib:,.1f}"


def format_card(n_bytes: float) -> str:
    """Formats the size of a card in both units."""
    return f"{n_bytes / GB:.4g} GB = {n_bytes / GIB:.1f} GiB"

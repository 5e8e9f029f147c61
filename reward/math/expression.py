"""One scalar expression, LaTeX or plain, as a tree of nodes."""

from functools import lru_cache

from qwen_align.reward.math.node import Node, applied, is_number, symbols
from qwen_align.reward.math.reader import Reader
from qwen_align.reward.math.tokens import NotAnExpressionError, tokens_of

__all__ = ["Node", "applied", "is_number", "parse", "symbols"]

MAX_CACHED = 400  # characters: longer answers are rare, and their trees large


def parse(text: str) -> Node | None:
    """The tree of `text` if the whole of it is one scalar expression, else None."""
    return _parsed(text) if len(text) <= MAX_CACHED else _parsed.__wrapped__(text)


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers and share one gold
def _parsed(text: str) -> Node | None:
    try:
        tokens = tokens_of(text)
        return Reader(tokens).whole() if tokens else None
    except NotAnExpressionError:
        return None

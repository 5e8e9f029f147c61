"""Compares expressions with Math-Verify and sympy, in worker processes that are killed at a deadline.

Only pairs of single expressions come here (integrals, limits, infinite sums, special functions), and only "equal" or
"not equal" comes back.
"""

import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

from qwen_align.reward.worker_pool import DeadError, GoneError, LateError, Pool, WorkError

TIME_LIMIT_S = 1.0  # wall time of one item; with the kill every call ends within 1.2 s of its start
MEMORY_GIB = 2.0
MAX_WORKERS = 32  # forked when needed: so many callers at once do not wait for each other
_DIGITS = 30
_REQUIRED_DIGITS = 25  # that a series' or integral's value must share with the gold's
_REQUIRED_BITS = 90  # of a value that sympy computed to all its digits
_UNBRACED_ARGUMENT = re.compile(r"([_^]|\\sqrt(?![A-Za-z]))\s*([A-Za-z0-9]|\\pi(?![A-Za-z]))")
_ONE_SIDED_LIMIT = re.compile(
    r"(\\to\s*)(-?(?:[0-9.]+|[a-z](?![a-z])|\\pi|\{[^{}]*\}))\s*(?:\^\s*([+-])|\^\s*\{\s*([+-])\s*\})"
)
_ANY_SIDE_MARK = re.compile(r"\^\s*\{?\s*[+-]\s*\}|\^\s*[+-]|[0-9][+-]\s*\}|\\(?:down|up|se|ne)arrow")
_DIFFERENTIAL_NAME = re.compile("d[A-Za-z]?")  # letters that a derivative of higher order is misparsed as
_MAX_CACHED_REPLIES = 10_000  # replies, a few hundred bytes each

_reply_cache: OrderedDict[tuple[tuple[str, str], ...], str] = OrderedDict()
_lock = threading.Lock()


def judge_pairs(pairs: tuple[tuple[str, str], ...], *, deadline: float | None = None) -> str:
    """Returns "fallback" if every (gold, answer) pair of expressions is equal, else the reason for a reward of 0.

    The other reasons are "wrong", "time limit", "worker died" and "no fallback on this platform".
    Raises pool.UnservedError if the deadline, a `time.monotonic()`, passes first, pool.StartError if the installation
    is at fault, and pool.GoneError if the workers' server was ended from outside twice. The first call of a process
    starts the workers, which may take 5 seconds.
    """
    if not hasattr(os, "fork"):
        return "no fallback on this platform"
    with _lock:
        if pairs in _reply_cache:
            _reply_cache.move_to_end(pairs)
            return _reply_cache[pairs]
        pool = _get_pool()  # under the lock: two threads must not make two
    try:
        reason = "fallback" if pool.ask(pairs, deadline=deadline) is True else "wrong"
    except LateError:
        reason = "time limit"
    except GoneError:
        raise
    except DeadError:
        return "worker died"  # not cached: what killed it need not have been these pairs
    except WorkError:  # Math-Verify could not read or compare them
        reason = "wrong"
    with _lock:
        _reply_cache[pairs] = reason
        while len(_reply_cache) > _MAX_CACHED_REPLIES:
            _reply_cache.popitem(last=False)
    return reason


def start_workers() -> None:
    """Starts the worker processes of the sympy fallback now. Does nothing on a platform that cannot fork."""
    if hasattr(os, "fork"):
        with _lock:
            pool = _get_pool()
        pool.warm_up()


@cache
def _get_pool() -> Pool:
    """Returns the pool of worker processes shared by this process. The first call starts it."""
    logging.getLogger(__name__).info("starting the workers of the math fallback: up to 5 seconds, once a process")
    return Pool(
        "qwen_align.reward.math.sympy_fallback:load_pair_checker",
        workers=MAX_WORKERS,
        limit_s=TIME_LIMIT_S,
        memory_gib=MEMORY_GIB,
    )


def load_pair_checker(argument: None) -> Callable[[list[list[str]]], bool]:
    """Imports sympy and Math-Verify and returns a function that checks whether all pairs of expressions are equal.

    The worker processes run this function.
    """
    logging.disable()  # Math-Verify reports every unreadable answer
    for answer in (r"\int_0^1 x\,dx", r"\lim_{x\to 0}\frac{x}{2x}", r"\sum_{n=1}^{\infty}\frac{1}{3^n}"):
        _is_pair_equal(r"\frac{1}{2}", answer)  # loads what the work needs before the workers are forked
    return lambda pairs: all(_is_pair_equal(gold, answer) for gold, answer in pairs)


def _is_pair_equal(gold: str, answer: str) -> bool:
    """Checks whether gold and answer are equal by Math-Verify, or have the same value to _REQUIRED_DIGITS digits."""
    import math_verify

    if (r"\partial" in gold) != (r"\partial" in answer) and r"\frac" in gold and r"\frac" in answer:
        return False  # derivatives of two kinds
    gold_expression, answer_expression = _parse_with_sympy(gold), _parse_with_sympy(answer)
    if gold_expression is None or answer_expression is None:
        return False
    gold_value, answer_value = _evaluate_constant(gold_expression), _evaluate_constant(answer_expression)
    if gold_value is not None and answer_value is not None:
        return bool(abs(gold_value - answer_value) <= abs(gold_value) / 10**_REQUIRED_DIGITS)
    return bool(math_verify.verify([gold_expression], [answer_expression], timeout_seconds=None, raise_on_error=True))


def _parse_with_sympy(text: str) -> Any:
    """Parses a text to a sympy expression and evaluates its limits. Returns None if sympy would misread the text."""
    import math_verify
    import sympy

    text_with_sides, n_one_sided = _ONE_SIDED_LIMIT.subn(_brace_approach_direction, text)
    n_limits = text.count(r"\lim")
    if n_limits and (n_one_sided not in (0, n_limits) or (n_one_sided == 0 and _ANY_SIDE_MARK.search(text))):
        return None  # the grammar would read a side as an exponent, or leave it out
    braced_text = _UNBRACED_ARGUMENT.sub(r"\1{\2}", text_with_sides)  # the grammar reads no `\int_1^e`
    parsed = math_verify.parse(f"${braced_text}$", parsing_timeout=None, raise_on_error=True)
    expression = next(
        (candidate for candidate in parsed if isinstance(candidate, sympy.Basic | sympy.MatrixBase)), None
    )
    if expression is None or any(map(_is_misread_differential, expression.atoms(sympy.Derivative, sympy.Symbol))):
        return None
    return expression.replace(
        lambda candidate: isinstance(candidate, sympy.Limit),
        lambda candidate: _evaluate_limit(candidate, is_two_sided=not n_one_sided),
    )


def _brace_approach_direction(match: re.Match[str]) -> str:
    r"""Rewrites the approach direction of a limit with braces for sympy's grammar, `\to 0^+` as `\to{0}^{+}`."""
    point = match[2].strip("{}")
    return f"{match[1]}{{{point}}}^{{{match[3] or match[4]}}}"


def _is_misread_differential(atom: Any) -> bool:
    """Checks whether a sympy atom is a misread derivative or differential.

    Sympy takes a derivative of a variable for zero, and a differential for a variable.
    """
    if atom.is_Symbol:
        return _DIFFERENTIAL_NAME.fullmatch(atom.name) is not None
    return atom.expr.is_Symbol or not atom.expr.has(*atom.variables)


def _evaluate_limit(limit: Any, *, is_two_sided: bool) -> Any:
    """Returns the value of a sympy limit.

    Raises ValueError if it is two-sided and the limits from both sides differ.
    """
    import sympy

    function, variable, point, direction = limit.args
    return sympy.Limit(function, variable, point, "+-" if is_two_sided and point.is_finite else str(direction)).doit()


def _evaluate_constant(expression: Any) -> Any:
    """Returns the numeric value of a constant sympy expression. Returns None if not all digits are certain."""
    import sympy

    number = None if expression.free_symbols else sympy.N(expression, _DIGITS)
    return number if number is not None and number.is_Float and number._prec >= _REQUIRED_BITS else None

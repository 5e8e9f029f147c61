"""Math-Verify and sympy on what the exact layer cannot decide, in processes that are killed by deadline.

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

LIMIT_S = 1.0  # wall time of one item; with the kill every call ends within 1.2 s of its start
MEMORY_GIB = 2.0
WORKERS = 32  # forked when needed: so many callers at once do not wait for each other, whatever they ask
_DIGITS = 30
_SURE_DIGITS = 25  # that a series' or integral's value must share with the gold's
_SURE_BITS = 90  # of a value that sympy computed to all its digits
_UNBRACED = re.compile(r"([_^]|\\sqrt(?![A-Za-z]))\s*([A-Za-z0-9]|\\pi(?![A-Za-z]))")
_SIDED = re.compile(r"(\\to\s*)(-?(?:[0-9.]+|[a-z](?![a-z])|\\pi|\{[^{}]*\}))\s*(?:\^\s*([+-])|\^\s*\{\s*([+-])\s*\})")
_ANY_SIDE = re.compile(r"\^\s*\{?\s*[+-]\s*\}|\^\s*[+-]|[0-9][+-]\s*\}|\\(?:down|up|se|ne)arrow")
_DIFFERENTIALS = re.compile("d[A-Za-z]?")  # letters that a derivative of higher order is misread as
_MAX_KEPT = 10_000  # replies, a few hundred bytes each

_kept: OrderedDict[tuple[tuple[str, str], ...], str] = OrderedDict()
_lock = threading.Lock()


def ask(pairs: tuple[tuple[str, str], ...], *, deadline: float | None = None) -> str:
    """The reason of the verdict: "fallback" if all pairs are equal, else "wrong", "time limit" or "worker died".

    Raises pool.UnservedError if the deadline, a `time.monotonic()`, passes first, and pool.StartError if the
    installation is at fault, pool.GoneError if the workers' server was ended from outside twice. The first call of a
    process starts the workers, which may take 5 seconds.
    """
    if not hasattr(os, "fork"):
        return "no fallback on this platform"
    with _lock:
        if pairs in _kept:
            _kept.move_to_end(pairs)
            return _kept[pairs]
        pool = _pool()  # under the lock: two threads must not make two
    try:
        reason = "fallback" if pool.ask(pairs, deadline=deadline) is True else "wrong"
    except LateError:
        reason = "time limit"
    except GoneError:
        raise
    except DeadError:
        return "worker died"  # not kept: what killed it need not have been these pairs
    except WorkError:  # Math-Verify could not read or compare them
        reason = "wrong"
    with _lock:
        _kept[pairs] = reason
        while len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)
    return reason


def warm() -> None:
    """Start the workers now; does nothing on a platform that cannot fork."""
    if hasattr(os, "fork"):
        with _lock:
            pool = _pool()
        pool.warm_up()


@cache
def _pool() -> Pool:
    logging.getLogger(__name__).info("starting the workers of the math fallback: up to 5 seconds, once a process")
    return Pool(
        "qwen_align.reward.math.fallback:serve",
        workers=WORKERS,
        limit_s=LIMIT_S,
        memory_gib=MEMORY_GIB,
    )


def serve(argument: None) -> Callable[[list[list[str]]], bool]:
    """The handler that runs in the workers: whether every pair of a gold's and an answer's expression is equal."""
    logging.disable()  # Math-Verify reports every unreadable answer
    for said in (r"\int_0^1 x\,dx", r"\lim_{x\to 0}\frac{x}{2x}", r"\sum_{n=1}^{\infty}\frac{1}{3^n}"):
        _are_equal(r"\frac{1}{2}", said)  # loads what the work needs before the workers are forked
    return lambda pairs: all(_are_equal(gold, said) for gold, said in pairs)


def _are_equal(gold: str, said: str) -> bool:
    import math_verify

    if (r"\partial" in gold) != (r"\partial" in said) and r"\frac" in gold and r"\frac" in said:
        return False  # derivatives of two kinds
    one, other = _expression(gold), _expression(said)
    if one is None or other is None:
        return False
    first, second = _value(one), _value(other)
    if first is not None and second is not None:
        return bool(abs(first - second) <= abs(first) / 10**_SURE_DIGITS)
    return bool(math_verify.verify([one], [other], timeout_seconds=None, raise_on_error=True))


def _expression(text: str) -> Any:
    """What sympy makes of a text, its limits taken, None if that is not what the text says."""
    import math_verify
    import sympy

    sided, n_sided = _SIDED.subn(_braced_side, text)
    n_limits = text.count(r"\lim")
    if n_limits and (n_sided not in (0, n_limits) or (n_sided == 0 and _ANY_SIDE.search(text))):
        return None  # the grammar would read a side as an exponent, or leave it out
    braced = _UNBRACED.sub(r"\1{\2}", sided)  # the grammar reads no `\int_1^e`
    found = math_verify.parse(f"${braced}$", parsing_timeout=None, raise_on_error=True)
    known = next((one for one in found if isinstance(one, sympy.Basic | sympy.MatrixBase)), None)
    if known is None or any(map(_is_misread, known.atoms(sympy.Derivative, sympy.Symbol))):
        return None
    return known.replace(lambda one: isinstance(one, sympy.Limit), lambda one: _limit(one, is_two_sided=not n_sided))


def _braced_side(found: re.Match[str]) -> str:
    place = found[2].strip("{}")
    return f"{found[1]}{{{place}}}^{{{found[3] or found[4]}}}"


def _is_misread(one: Any) -> bool:
    """Whether it is the derivative of a letter, which sympy takes for zero, or a letter that is none."""
    if one.is_Symbol:
        return _DIFFERENTIALS.fullmatch(one.name) is not None
    return one.expr.is_Symbol or not one.expr.has(*one.variables)


def _limit(one: Any, *, is_two_sided: bool) -> Any:
    """The limit's value; raises ValueError where the limits from both sides differ."""
    import sympy

    of, variable, place, side = one.args
    return sympy.Limit(of, variable, place, "+-" if is_two_sided and place.is_finite else str(side)).doit()


def _value(one: Any) -> Any:
    """The value of a constant if all its digits are sure, else None."""
    import sympy

    number = None if one.free_symbols else sympy.N(one, _DIGITS)
    return number if number is not None and number.is_Float and number._prec >= _SURE_BITS else None

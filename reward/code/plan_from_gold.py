"""What to run for a gold, and how to judge what comes back: the gold is read here and never by the candidate."""

import ast
import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from qwen_align.reward.code.assertion_checks import (
    Call,
    Check,
    Outcome,
    asserts_something,
    holds,
    needed,
    planned_asserts,
)
from qwen_align.reward.code.collect_tests import (
    Collected,
    UncollectedError,
    asserts_by_method,
    collected,
    is_certain,
    pays_all,
    telling,
)
from qwen_align.reward.code.compare_outputs import lines, same_output
from qwen_align.reward.code.name_analysis import (
    asserts,
    bound_names,
    builtin_subjects,
    called_names,
    free_names,
    importable,
    module_names,
    used_names,
)
from qwen_align.reward.code.value_serialization import NotPlainError, encode


class Trial(NamedTuple):
    """Whether the outcomes of the calls are right, which can be said as soon as there are `n_outcomes`."""

    n_outcomes: int
    passes: Callable[[Sequence[Outcome]], bool]


_PARSE_TRIES = 10

PRELUDE = "\n".join(
    [
        "from typing import *",
        "import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys",
        "from bisect import bisect_left, bisect_right, insort",
        "from collections import Counter, OrderedDict, defaultdict, deque, namedtuple",
        "from functools import cache, cmp_to_key, lru_cache, reduce",
        "from heapq import heapify, heappop, heappush, heappushpop, nlargest, nsmallest",
        "from itertools import accumulate, chain, combinations, count, permutations, product",
        "from math import ceil, comb, floor, gcd, inf, isqrt, sqrt",
    ]
)
"""Names a solution of a function problem may use unimported, as the sites they come from provide them."""


class Script(NamedTuple):
    """Trial code for a cell of its own, which calls the candidate's; `n_tests` where they can be counted beforehand."""

    before: list[str]
    tests: list[str]
    entry: str | None
    remote: list[str]
    modules: list[str]
    n_tests: int
    tells: bool
    """Whether the assertions tell that they were evaluated: where it is not certain that one is."""


class Calls(NamedTuple):
    """Calls with plain arguments, and tests of what they give; `otherwise` where a test needs more than values."""

    calls: list[Call]
    tests: list[Trial]
    otherwise: Script | None


class Programs(NamedTuple):
    """Standard inputs, and the lines a fresh run of the program has to print for each."""

    inputs: list[str]
    expected: list[list[str]]


class Plan(NamedTuple):
    """How to judge a completion: what surrounds its code, and what is done with it."""

    work: Calls | Script | Programs
    before: list[str]
    prompt: str | None = None
    entry: str | None = None


def plan(gold: Any) -> Plan | None:
    """The plan of a gold, None if it is unusable: of no known form, testing nothing, or of code that is none."""
    try:
        return _plan(json.dumps(gold, sort_keys=True))
    except (TypeError, ValueError, RecursionError):
        return None


@lru_cache(maxsize=256)  # a batch repeats its golds, once for each completion of a prompt
def _plan(written: str) -> Plan | None:
    gold = json.loads(written)
    if not isinstance(gold, dict):
        return None
    try:
        if "tests" in gold:
            return _of_list(gold)
        if "test" in gold:
            return _of_check(gold)
        return _of_outputs(gold)
    except (KeyError, TypeError, SyntaxError, ValueError, RecursionError, NotPlainError, UncollectedError):
        return None


def _of_list(gold: dict[str, Any]) -> Plan | None:
    found = _collected(_texts(gold["tests"]))
    imports, setup, late = (_texts(gold.get(key) or []) for key in ("imports", "setup", "test_setup_code"))
    trees = [_parsed(test) for test in (*found.before, *found.tests)]
    before = [_parsed(source) for source in (*imports, *setup, *late)]
    free = free_names([*before, *trees])
    modules = module_names([*before, *trees], free)
    called = called_names(trees) & ((free - modules) or builtin_subjects(trees))
    if not called or not _tests([*before, *trees]):
        return None
    remote = sorted((free - modules) or called)
    is_sure = any(is_certain(tree.body) for tree in trees)
    work = _script([*imports, *setup, *late, *found.before], found.tests, None, remote, modules, is_sure=is_sure)
    own = [source for source in setup if not free_names([*before[: len(imports)], _parsed(source)])]
    return _plan_of(work, planned_asserts(found.bodies or trees, called, before), Plan(work, [*imports, *own]))


def _of_check(gold: dict[str, Any]) -> Plan | None:
    prompt, entry, test = gold.get("prompt") or "", gold["entry_point"], gold["test"]
    if not all(isinstance(one, str) for one in (prompt, entry, test)) or not entry.isidentifier():
        return None
    tree = _parsed(test)
    check = next((one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "check"), None)
    found = _collected([test]) if check is None else Collected([], [test], None)
    trees = [_parsed(one) for one in (*found.before, *found.tests)]
    whole = f"{prompt.rstrip()}\n    pass\n" if prompt.strip() else ""
    head = _parsed(whole)
    if not bound_names([head]) & used_names(trees) - {entry}:
        whole = ""  # the tests need nothing of it
    free = free_names([head, *trees]) | {entry}
    modules = module_names(trees, free)
    if not _tests([head, *trees]) or (check is None and not called_names(trees) & free):
        return None
    if check is not None and (len(check.args.args) != 1 or not called_names([check]) & {check.args.args[0].arg, entry}):
        return None
    before = [whole, *found.before] if whole else found.before
    is_sure = is_certain(check.body if check else [one for tree in trees for one in tree.body])
    named = entry if check else None
    work = _script(before, found.tests, named, sorted(free - modules), modules, is_sure=is_sure)
    planned = planned_asserts([tree], {entry}, [], check) if check is not None else None
    return _plan_of(work, planned, Plan(work, [], prompt or None, entry))


def _collected(sources: list[str]) -> Collected:
    """The sources as code that runs their tests."""
    parts = [collected(source, _parsed(source)) for source in sources]
    bodies = [one for part in parts for one in part.bodies or []] if all(part.bodies for part in parts) else None
    return Collected(
        [one for part in parts for one in part.before], [one for part in parts for one in part.tests], bodies
    )


def _script(
    before: list[str], tests: list[str], entry: str | None, remote: list[str], modules: set[str], *, is_sure: bool
) -> Script:
    n_tests = len(tests) if entry is None else len(asserts([_parsed(one) for one in tests]))
    if not is_sure:
        before, tests = [telling(_parsed(one)) for one in before], [telling(_parsed(one)) for one in tests]
    return Script(before, tests, entry, remote, sorted(modules), n_tests, not is_sure)


def _tests(trees: Sequence[ast.AST]) -> bool:
    """Whether the code asserts something, and nothing that holds whatever the candidate does."""
    return bool(asserts(trees) or asserts_by_method(trees)) and not any(map(pays_all, trees)) and importable(trees)


def _of_outputs(gold: dict[str, Any]) -> Plan | None:
    inputs, outputs = gold["inputs"], gold["outputs"]
    name = gold.get("fn_name") or gold.get("entry_point")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        return None
    if name is None:
        expected = [lines(_text(one)) for one in outputs]
        return Plan(Programs([_text(one) for one in inputs], expected), []) if any(expected) else None
    if not isinstance(name, str) or not name.isidentifier():
        return None
    if all(isinstance(one, str) for one in (*inputs, *outputs)):  # LiveCodeBench: an argument a line, in JSON
        inputs = [[json.loads(line) for line in one.split("\n") if line.strip()] for one in inputs]
        outputs = [json.loads(one) for one in outputs]
    calls = [(name, *_arguments(one)) for one in inputs]
    wrapped = all(isinstance(one, list) and len(one) == 1 for one in outputs)  # as APPS writes them
    tests = [Trial(at + 1, partial(_returned, at, one, wrapped)) for at, one in enumerate(outputs)]
    return Plan(Calls(calls, tests, None), [PRELUDE])


def _parsed(source: str) -> ast.Module:
    """The tree of a source; raises SyntaxError, ValueError.

    CPython 3.11 keeps one count of the nesting for all threads, so that of two which parse at once one may get a
    SystemError for a right source: github.com/python/cpython/issues/106905.
    """
    for _ in range(_PARSE_TRIES - 1):
        try:
            return ast.parse(source)
        except SystemError:
            continue
    return ast.parse(source)


def _plan_of(work: Script, planned: tuple[list[Call], list[list[Check]]] | None, otherwise: Plan) -> Plan | None:
    """The plan with calls where the tests could be taken apart, None if nothing is asserted of what they give."""
    if planned is None:
        return otherwise
    calls, tests = planned
    if not any(map(asserts_something, (check for test in tests for check in test))):
        return None
    return otherwise._replace(work=Calls(calls, [Trial(needed(test), partial(holds, test)) for test in tests], work))


def _returned(at: int, expected: Any, wrapped: bool, outcomes: Sequence[Outcome]) -> bool:
    value = outcomes[at].get()
    return same_output(value, expected) or (wrapped and same_output(value, expected[0]))


def _arguments(given: Any) -> tuple[Any, Any]:
    if isinstance(given, dict):
        return encode(()), encode(given)
    if not isinstance(given, list):
        raise ValueError("no list of arguments")
    return encode(tuple(given)), encode({})


def _texts(given: Any) -> list[str]:
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise TypeError("no list of code")
    return [one.replace("\r\n", "\n") for one in given if one.strip()]


def _text(given: Any) -> str:
    """A standard input or output; some data sets hold its lines as a list."""
    if isinstance(given, list) and all(isinstance(one, str) for one in given):
        return "\n".join(given)
    if not isinstance(given, str):
        raise TypeError("no text")
    given.encode()  # raises ValueError
    return given

"""What to run for a gold, and how to judge what comes back: the gold is read here and never by the candidate."""

import ast
import builtins
import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from qwen_align.reward.code.asserts import Call, Check, Outcome, holds, needed, planned_asserts
from qwen_align.reward.code.compare import lines, same_output
from qwen_align.reward.code.values import NotPlainError, encode


class Trial(NamedTuple):
    """Whether the outcomes of the calls are right, which can be said as soon as there are `n_outcomes`."""

    n_outcomes: int
    passes: Callable[[Sequence[Outcome]], bool]


_PARSE_TRIES = 10

MODULES = frozenset(
    {"math", "cmath", "sys", "re", "collections", "itertools", "functools", "random", "string", "datetime", "copy"}
    | {"json", "heapq", "bisect", "operator", "statistics", "decimal", "fractions", "typing"}
)
"""Modules a test may name without importing them: MBPP's rely on the candidate's own imports."""

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
    except (KeyError, TypeError, SyntaxError, ValueError, RecursionError, NotPlainError):
        return None


def _of_list(gold: dict[str, Any]) -> Plan | None:
    tests = _texts(gold["tests"])
    imports, setup, late = (_texts(gold.get(key) or []) for key in ("imports", "setup", "test_setup_code"))
    trees = [_parsed(test) for test in tests]
    before = [_parsed(source) for source in (*imports, *setup, *late)]
    free = _free_names([*before, *trees])
    modules = _modules([*before, *trees], free)
    called = _called(trees) & ((free - modules) or _builtin_subjects(trees))
    if not called or not _asserts(trees):
        return None
    remote = sorted((free - modules) or called)
    work = Script([*imports, *setup, *late], tests, None, remote, sorted(modules), len(tests))
    own = [source for source in setup if not _free_names([*before[: len(imports)], _parsed(source)])]
    return Plan(_calls_or(work, planned_asserts(trees, called, before)), [*imports, *own])


def _of_check(gold: dict[str, Any]) -> Plan | None:
    prompt, entry, test = gold.get("prompt") or "", gold["entry_point"], gold["test"]
    if not all(isinstance(one, str) for one in (prompt, entry, test)) or not entry.isidentifier():
        return None
    tree = _parsed(test)
    whole = f"{prompt.rstrip()}\n    pass\n" if prompt.strip() else ""
    head = _parsed(whole)
    if not _bound([head]) & _used([tree]) - {entry}:
        whole = ""  # the tests need nothing of it
    check = next((one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "check"), None)
    free = _free_names([head, tree]) | {entry}
    modules = _modules([tree], free)
    if not _asserts([tree]) or (check is None and not _called([tree]) & free):
        return None
    if check is not None and (len(check.args.args) != 1 or not _called([check]) & {check.args.args[0].arg, entry}):
        return None
    n_tests = len(_asserts([tree]))
    work = Script(
        [whole] if whole else [], [test], entry if check else None, sorted(free - modules), sorted(modules), n_tests
    )
    planned = planned_asserts([tree], {entry}, [], check) if check is not None else None
    return Plan(_calls_or(work, planned), [], prompt or None, entry)


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


def _calls_or(work: Script, planned: tuple[list[Call], list[list[Check]]] | None) -> Calls | Script:
    if planned is None:
        return work
    calls, tests = planned
    return Calls(calls, [Trial(needed(test), partial(holds, test)) for test in tests], work)


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


def _asserts(trees: Sequence[ast.AST]) -> list[ast.AST]:
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def _called(trees: Sequence[ast.AST]) -> set[str]:
    calls = (node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {name.id for call in calls for name in ast.walk(call) if isinstance(name, ast.Name)}


def _free_names(trees: Sequence[ast.AST]) -> set[str]:
    """The names that the code uses and binds nowhere, built-in ones aside: those of the candidate, and of modules."""
    return _used(trees) - _bound(trees) - set(dir(builtins))


def _used(trees: Sequence[ast.AST]) -> set[str]:
    names = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Load)}


def _bound(trees: Sequence[ast.AST]) -> set[str]:
    bound: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return bound


def _modules(trees: Sequence[ast.AST], free: set[str]) -> set[str]:
    """Those of the names that are modules: known ones of which only attributes are used."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bases = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    inside = {id(base) for base in bases if isinstance(base, ast.Name)}
    alone = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in inside}
    return (free & MODULES) - alone


def _builtin_subjects(trees: Sequence[ast.Module]) -> set[str]:
    """The built-in functions that the asserts call outermost: what is under test where they call nothing else."""
    found = set()
    for node in _asserts(trees):
        assert isinstance(node, ast.Assert)
        said = node.test.left if isinstance(node.test, ast.Compare) else node.test
        if isinstance(said, ast.Call) and isinstance(said.func, ast.Name):
            found.add(said.func.id)
    return found

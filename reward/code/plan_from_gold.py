"""Converts the gold of a code problem into a test plan, which says what to run and how to judge the results."""

import ast
import json
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from qwen_align.reward.code.assertion_checks import Call, split_assertions
from qwen_align.reward.code.collect_tests import (
    CollectedTests,
    UncollectedError,
    collect_tests,
    has_unittest_assertion,
    has_vacuous_assertion,
    mark_reached_assertions,
    surely_asserts,
)
from qwen_align.reward.code.compare_outputs import equals_expected, split_output_lines
from qwen_align.reward.code.contradictions import contradict_assertions, contradict_outputs
from qwen_align.reward.code.long_integers import read_long_json, rewrite_long_integers
from qwen_align.reward.code.name_analysis import (
    imports_only_stdlib,
    list_asserts,
    list_bound_names,
    list_called_names,
    list_free_names,
    list_outermost_calls,
    list_used_names,
    pick_module_names,
)
from qwen_align.reward.code.outcome_checks import (
    Check,
    OutcomeTest,
    are_checks_true,
    count_needed_outcomes,
    examines_value,
    is_output_expected,
    pack_tests,
)
from qwen_align.reward.code.undefined_judges import candidate_judges_itself
from qwen_align.reward.code.value_serialization import NotPlainError, encode_value

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


class ScriptTests(NamedTuple):
    """A test script that runs in a sandbox cell of its own and calls the candidate's code remotely."""

    before: list[str]
    tests: list[str]
    entry: str | None
    remote: list[str]
    modules: list[str]
    n_tests: int
    tells: bool
    """Whether the assertions tell that they were evaluated: where it is not certain that one is."""


class CallTests(NamedTuple):
    """A list of calls with plain arguments and tests of their results, packed for the cell that evaluates them.

    `otherwise` is the plan if a test needs more than plain values.
    """

    calls: list[Call]
    packed_tests: bytes
    n_tests: int
    otherwise: ScriptTests | None


class ProgramTests(NamedTuple):
    """A list of standard inputs, with the output lines that the program must print for each."""

    inputs: list[str]
    expected: list[list[str]]


class Plan(NamedTuple):
    """A plan of how to test a completion's code."""

    work: CallTests | ScriptTests | ProgramTests
    before: list[str]
    prompt: str | None = None
    entry: str | None = None


def plan_from_gold(gold: Any) -> Plan | None:
    """Converts a code gold into a test plan.

    Returns None if the gold has no known format, tests nothing or has broken code.
    """
    try:
        return _parse_gold(json.dumps(gold, sort_keys=True))
    except (TypeError, ValueError, RecursionError, MemoryError):
        return None


@lru_cache(maxsize=256)  # a batch repeats its golds, once for each completion of a prompt
def _parse_gold(gold_json: str) -> Plan | None:
    """Parses a code gold written as JSON into a test plan. Returns None if it is unusable."""
    gold = json.loads(gold_json)
    if not isinstance(gold, dict):
        return None
    try:
        if "tests" in gold:
            return _plan_test_list(gold)
        if "test" in gold:
            return _plan_check_function(gold)
        return _plan_outputs(gold)
    except (KeyError, TypeError, SyntaxError, ValueError, NotPlainError, UncollectedError):
        return None
    except (RecursionError, MemoryError):  # the second is what Python's parser raises for too deep a nesting
        return None


def _plan_test_list(gold: dict[str, Any]) -> Plan | None:
    """Makes the test plan of a gold with a list of `tests`, which are assert lines or pytest and unittest tests."""
    collected = _collect_sources(_read_sources(gold["tests"]))
    imports, setup, test_setup = (_read_sources(gold.get(key) or []) for key in ("imports", "setup", "test_setup_code"))
    trees = [_parse_source(test) for test in (*collected.before, *collected.tests)]
    before = [_parse_source(source) for source in (*imports, *setup, *test_setup)]
    free_names = list_free_names([*before, *trees])
    module_names = pick_module_names([*before, *trees], free_names)
    tested_names = list_called_names(trees) & ((free_names - module_names) or list_outermost_calls(trees))
    if not tested_names or not _has_testing_assertion([*before, *trees]):
        return None
    if candidate_judges_itself([*before, *trees], free_names - module_names):
        return None
    remote_names = sorted((free_names - module_names) or tested_names)
    always_asserts = any(surely_asserts(tree.body) for tree in trees)
    work = _make_test_script(
        [*imports, *setup, *test_setup, *collected.before],
        collected.tests,
        None,
        remote_names,
        module_names,
        always_asserts=always_asserts,
    )
    independent_setup = [
        source for source in setup if not list_free_names([*before[: len(imports)], _parse_source(source)])
    ]
    return _choose_calls_or_script(
        work,
        split_assertions(collected.bodies or trees, tested_names, before),
        Plan(work, [*imports, *independent_setup]),
    )


def _plan_check_function(gold: dict[str, Any]) -> Plan | None:
    """Makes the test plan of a gold with `test` code, usually a `check(candidate)`, and an `entry_point`."""
    prompt, entry, test = gold.get("prompt") or "", gold["entry_point"], gold["test"]
    if not all(isinstance(part, str) for part in (prompt, entry, test)) or not entry.isidentifier():
        return None
    tree = _parse_source(test)
    check = next((part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == "check"), None)
    collected = _collect_sources([test]) if check is None else CollectedTests([], [test], None)
    trees = [_parse_source(part) for part in (*collected.before, *collected.tests)]
    completed_prompt = f"{prompt.rstrip()}\n    pass\n" if prompt.strip() else ""
    head = _parse_source(completed_prompt)
    if not list_bound_names([head]) & list_used_names(trees) - {entry}:
        completed_prompt = ""  # the tests need nothing of it
    free_names = list_free_names([head, *trees]) | {entry}
    module_names = pick_module_names(trees, free_names)
    if not _has_testing_assertion([head, *trees]) or (check is None and not list_called_names(trees) & free_names):
        return None
    if check is not None and (
        len(check.args.args) != 1 or not list_called_names([check]) & {check.args.args[0].arg, entry}
    ):
        return None
    entries = {entry} if check is None else {entry, check.args.args[0].arg}
    if candidate_judges_itself(trees, (free_names - module_names) | entries, entries):
        return None
    before = [completed_prompt, *collected.before] if completed_prompt else collected.before
    always_asserts = surely_asserts(check.body if check else [part for tree in trees for part in tree.body])
    check_entry = entry if check else None
    work = _make_test_script(
        before,
        collected.tests,
        check_entry,
        sorted(free_names - module_names),
        module_names,
        always_asserts=always_asserts,
    )
    split_tests = split_assertions([tree], {entry}, [], check) if check is not None else None
    return _choose_calls_or_script(work, split_tests, Plan(work, [], prompt or None, entry))


def _collect_sources(sources: list[str]) -> CollectedTests:
    """Collects the tests of several sources and returns code that runs them."""
    parts = [collect_tests(source, _parse_source(source)) for source in sources]
    bodies = [item for part in parts for item in part.bodies or []] if all(part.bodies for part in parts) else None
    return CollectedTests(
        [item for part in parts for item in part.before], [item for part in parts for item in part.tests], bodies
    )


def _make_test_script(
    before: list[str],
    tests: list[str],
    entry: str | None,
    remote: list[str],
    modules: set[str],
    *,
    always_asserts: bool,
) -> ScriptTests:
    """Builds the script that runs the tests, with markers if no assertion in it is certain to be evaluated."""
    n_tests = len(tests) if entry is None else len(list_asserts([_parse_source(source) for source in tests]))
    if not always_asserts:
        before, tests = (
            [mark_reached_assertions(_parse_source(source)) for source in before],
            [mark_reached_assertions(_parse_source(source)) for source in tests],
        )
    return ScriptTests(before, tests, entry, remote, sorted(modules), n_tests, not always_asserts)


def _has_testing_assertion(trees: Sequence[ast.AST]) -> bool:
    """Returns whether code contains assertions that can fail and imports only the standard library or numpy."""
    return (
        bool(list_asserts(trees) or has_unittest_assertion(trees))
        and not any(map(has_vacuous_assertion, trees))
        and imports_only_stdlib(trees)
    )


def _plan_outputs(gold: dict[str, Any]) -> Plan | None:
    """Makes the test plan of a gold with `inputs` and `outputs`, of a program or a function."""
    inputs, outputs = gold["inputs"], gold["outputs"]
    name = gold.get("fn_name") or gold.get("entry_point")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        return None
    if name is None:
        expected = [split_output_lines(_read_text(item)) for item in outputs]
        texts = [_read_text(item) for item in inputs]
        return (
            Plan(ProgramTests(texts, expected), [])
            if any(expected) and not contradict_outputs(texts, expected)
            else None
        )
    if not isinstance(name, str) or not name.isidentifier():
        return None
    if all(isinstance(item, str) for item in (*inputs, *outputs)):  # LiveCodeBench: an argument a line, in JSON
        inputs = [[read_long_json(line) for line in item.split("\n") if line.strip()] for item in inputs]
        outputs = [read_long_json(item) for item in outputs]
    if contradict_outputs(inputs, outputs) or not all(equals_expected(item, item) for item in outputs):
        return None
    calls = [(name, *_encode_arguments(item)) for item in inputs]
    is_wrapped = all(isinstance(item, list) and len(item) == 1 for item in outputs)  # as APPS writes them
    tests = [
        OutcomeTest(index + 1, partial(is_output_expected, index, item, is_wrapped))
        for index, item in enumerate(outputs)
    ]
    packed_tests = pack_tests(tests)
    return None if packed_tests is None else Plan(CallTests(calls, packed_tests, len(tests), None), [PRELUDE])


def _parse_source(source: str) -> ast.Module:
    """Parses Python source into a syntax tree. Raises SyntaxError or ValueError if it is invalid.

    CPython 3.11 keeps one count of the nesting for all threads, so that of two which parse at once one may get a
    SystemError for a right source: github.com/python/cpython/issues/106905.
    """
    for _ in range(_PARSE_TRIES - 1):
        try:
            return ast.parse(source)
        except SystemError:
            continue
    return ast.parse(source)


def _choose_calls_or_script(
    work: ScriptTests, split_tests: tuple[list[Call], list[list[Check]]] | None, otherwise: Plan
) -> Plan | None:
    """Returns the plan with split calls if the tests could be split, else another plan.

    Returns None if nothing is asserted of the results, or if two assertions contradict each other.
    """
    if split_tests is None:
        return otherwise
    calls, tests = split_tests
    if not any(map(examines_value, (check for test in tests for check in test))) or contradict_assertions(calls, tests):
        return None
    packed_tests = pack_tests(
        [OutcomeTest(count_needed_outcomes(test), partial(are_checks_true, test)) for test in tests]
    )
    if packed_tests is None:
        return otherwise
    return otherwise._replace(work=CallTests(calls, packed_tests, len(tests), work))


def _encode_arguments(arguments: Any) -> tuple[Any, Any]:
    """Encodes the positional and keyword arguments of a call. Raises ValueError if they cannot be sent."""
    if isinstance(arguments, dict):
        return encode_value(()), encode_value(arguments)
    if not isinstance(arguments, list):
        raise ValueError("no list of arguments")
    return encode_value(tuple(arguments)), encode_value({})


def _read_sources(sources: Any) -> list[str]:
    """Returns the non-blank sources from a text or a list of texts. Raises TypeError for anything else."""
    sources = [sources] if isinstance(sources, str) else sources
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise TypeError("no list of code")
    return [rewrite_long_integers(source.replace("\r\n", "\n")) for source in sources if source.strip()]


def _read_text(text: Any) -> str:
    """Returns a standard input or output as one text, joining the lines if it is a list."""
    if isinstance(text, list) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    if not isinstance(text, str):
        raise TypeError("no text")
    text.encode()  # raises ValueError
    return text

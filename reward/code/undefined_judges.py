"""Finds golds whose tests leave it to the candidate to define what judges its own results.

`assert isclose(f(1), 0.5)` without an import hands the expected value to the candidate's `isclose` and believes what
it answers. `assert decode(encode("ab")) == "ab"` asks for two functions, and compares the result itself.
"""

import ast
import math
from collections.abc import Iterator, Sequence, Set

_KNOWN_HELPERS = frozenset(name for name in dir(math) if not name.startswith("_")) | frozenset(
    "allclose array_equal array_almost_equal approx norm assert_allclose assert_almost_equal assert_array_equal "
    "assert_array_almost_equal assert_equal assertEqual assertAlmostEqual assertTrue deepcopy".split()
)
"""Functions of `math`, numpy, pytest, unittest and `copy` that tests use on results."""
_ORDERINGS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)

Results = dict[str, set[str]]


def candidate_judges_itself(trees: Sequence[ast.AST], undefined: Set[str], entries: Set[str] = frozenset()) -> bool:
    """Returns whether test code has a function judge results that the candidate would have to define.

    `undefined` are the functions that the test code calls and does not define. `entries` are the names of the function
    that is asked for, where the gold says so: results of it may then be given to no other undefined function.
    """
    functions = {name for name in undefined if not name[:1].isupper()}  # an object may be given to any function
    results = _find_result_variables(trees, functions)
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and _gets_results_of_others(node, functions, results, entries):
            if entries or _get_function(node, functions) in _KNOWN_HELPERS:
                return True
        elif isinstance(node, ast.Assert | ast.Expr):
            expression = node.test if isinstance(node, ast.Assert) else node.value
            if any(_gets_results_of_others(call, functions, results, entries) for call in _list_deciding(expression)):
                return True
            if isinstance(expression, ast.Compare) and _compares_two_functions(expression, functions):
                return True
    return False


def _find_result_variables(trees: Sequence[ast.AST], functions: Set[str]) -> Results:
    """Returns the variables that hold results of functions, with the functions' names."""
    kinds = ast.Assign | ast.For | ast.comprehension | ast.NamedExpr
    assignments = [node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    results: Results = {}
    has_grown = True
    while has_grown:
        has_grown = False
        for node in assignments:
            value = node.iter if isinstance(node, ast.For | ast.comprehension) else node.value
            sources = _list_sources(value, functions, results)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)):
                if not sources <= results.get(name, set()):
                    results.setdefault(name, set()).update(sources)
                    has_grown = True
    return results


def _list_sources(node: ast.AST, functions: Set[str], results: Results) -> set[str]:
    """Returns the names of the functions whose results stand in an expression."""
    sources: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and _get_function(part, functions):
            sources.add(_get_function(part, functions))
        elif isinstance(part, ast.Name):
            sources |= results.get(part.id, set())
    return sources


def _gets_results_of_others(call: ast.Call, functions: Set[str], results: Results, entries: Set[str]) -> bool:
    """Returns whether an undefined function is called on a result of another one."""
    name = _get_function(call, functions)
    if not name or name in entries:
        return False
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    sources = {source for argument in arguments for source in _list_sources(argument, functions, results)} - {name}
    return bool(sources & entries if entries else sources)


def _list_deciding(expression: ast.expr) -> Iterator[ast.Call]:
    """Yields the calls whose own value decides whether an assertion holds, other than by `==`, `in` or `is`."""
    match expression:
        case ast.Call(func=ast.Name(id="abs" | "bool" | "all" | "any"), args=[argument]):
            yield from _list_deciding(argument)
        case ast.Call():
            yield expression
        case ast.UnaryOp(operand=operand):
            yield from _list_deciding(operand)
        case ast.BoolOp(values=values):
            for value in values:
                yield from _list_deciding(value)
        case ast.BinOp(left=left, right=right):
            yield from _list_deciding(left)
            yield from _list_deciding(right)
        case ast.GeneratorExp(elt=element) | ast.ListComp(elt=element):
            yield from _list_deciding(element)
        case ast.Compare(left=left, ops=operations, comparators=others) if _has_ordering_or_true(expression):
            for side in (left, *others) if operations else ():
                yield from _list_deciding(side)


def _has_ordering_or_true(expression: ast.Compare) -> bool:
    """Returns whether a comparison is by order, as with a tolerance, or with True or False."""
    return any(isinstance(operation, _ORDERINGS) for operation in expression.ops) or any(
        isinstance(other, ast.Constant) and isinstance(other.value, bool) for other in expression.comparators
    )


def _compares_two_functions(expression: ast.Compare, functions: Set[str]) -> bool:
    """Returns whether each side of a comparison is the result of an undefined function, and not of the same."""
    names = {_get_function(side, functions) for side in (expression.left, *expression.comparators)}
    return "" not in names and len(names) > 1


def _get_function(node: ast.AST, functions: Set[str]) -> str:
    """Returns the name of the function that a call names, if it is one of the given, else an empty text."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions
    return node.func.id if is_call else ""  # type: ignore[attr-defined]

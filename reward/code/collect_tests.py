"""Tests that only a test runner would call: what pytest and unittest collect, as code that calls it.

And what makes an assertion no test: one that always holds, or that nothing runs.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

REACHED = "_reached_"
"""What an assertion calls that was evaluated, where it is not certain that one is."""

_CANDIDATE = "solution"  # the module KodCode's tests import the candidate's function from
_FIXTURES = frozenset({"setup_method", "setup_class", "setup_function", "setup_module", "setUpModule"})
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


class UncollectedError(Exception):
    """Tests that a runner would run and this module does not: with fixtures, parameters, or a coroutine."""


class Collected(NamedTuple):
    """A source of tests as code that runs them."""

    before: list[str]
    """Definitions and what else asserts nothing."""
    tests: list[str]
    bodies: list[ast.Module] | None
    """The same tests as plain statements, where each is the body of a function."""


def collected(source: str, tree: ast.Module) -> Collected:
    """The source as code that runs its tests; raises UncollectedError."""
    body = [one for one in tree.body if not _is_main_guard(one) and not _is_candidate_import(one)]
    called = {name.id for one in body for name in ast.walk(one) if isinstance(name, ast.Name)}
    functions = [one for one in body if isinstance(one, _FUNCTION) and _is_test(one.name) and one.name not in called]
    classes = [one for one in body if isinstance(one, ast.ClassDef) and one.name not in called and _tests_of(one)]
    if any(_is_fixture(one) for one in body):
        raise UncollectedError
    calls = [_function_call(one) for one in functions]
    calls += [_method_call(one, method) for one in classes for method in _tests_of(one)]
    if not calls:
        return Collected([], [source if len(body) == len(tree.body) else _source(body)], None)
    rest = [one for one in body if one not in functions]
    is_tested = bool(_asserts([one for one in rest if not _defines(one)]))
    before, tests = ([], [_source(body), *calls]) if is_tested else ([_source(body)], calls)
    is_plain = all(isinstance(one, ast.Import | ast.ImportFrom) for one in rest)
    bodies = [ast.Module([*rest, *one.body], []) for one in functions] if is_plain else None
    return Collected(before, tests, bodies)


def always_holds(said: ast.expr) -> bool:
    """Whether an asserted expression is true whatever the candidate does: `(f(1) == 2, "x")`, `f(1) == 2 or True`."""
    match said:
        case ast.Constant(value=value):
            return bool(value)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return bool(elements)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(map(always_holds, values))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(map(always_holds, values))
    return isinstance(said, ast.Lambda)


def pays_all(tree: ast.AST) -> bool:
    """Whether an assertion looks like a test of a call and cannot fail."""
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert) and _has_call(node.test)]
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try) and _swallows(node)]
    swallowed = [one for node in tries for one in _asserts(node.body)]
    return any(always_holds(one.test) or one in swallowed for one in asserts)


def is_certain(body: Sequence[ast.stmt]) -> bool:
    """Whether one of the statements is an assertion that tests something, evaluated by the end of them."""
    for one in body:
        if isinstance(one, ast.Assert) and _says_something(one.test):
            return True
        if any(isinstance(node, ast.Return) for node in ast.walk(one)):
            return False
    return False


def asserts_by_method(trees: Sequence[ast.AST]) -> bool:
    """Whether unittest's methods assert something."""
    return any(_is_method_assert(node) for tree in trees for node in ast.walk(tree))


def telling(tree: ast.Module) -> str:
    """The source with each assertion telling that it was evaluated, or that the exception came which it expects."""
    return ast.unparse(ast.fix_missing_locations(_Telling().visit(tree)))


class _Telling(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.AST | list[ast.AST]:
        """The assertion, and a call after it unless it says nothing."""
        return [node, _told()] if _says_something(node.test) else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.AST]:
        """unittest's assertions are calls."""
        return [node, _told()] if _is_method_assert(node.value) else node

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.AST]:
        """`with self.assertRaises(...)` asserts at its end."""
        self.generic_visit(node)
        return [node, _told()] if any(_is_method_assert(item.context_expr) for item in node.items) else node

    def visit_Try(self, node: ast.Try) -> ast.AST:
        """An exception taken where an `assert` would have failed is what the test expects."""
        expects = _asserts(node.orelse) or (_asserts(node.body) and not _swallows(node))
        self.generic_visit(node)
        for handler in node.handlers if expects else ():
            handler.body.insert(0, _told())
        return node


def _asserts(body: Sequence[ast.stmt]) -> list[ast.AST]:
    return [node for one in body for node in ast.walk(one) if isinstance(node, ast.Assert)]


def _swallows(node: ast.Try) -> bool:
    """Whether an assertion that fails in the body is passed over in silence."""
    for handler in node.handlers:
        if handler.type is None or any(_is_failure(one) for one in ast.walk(handler.type)):
            return not any(
                isinstance(one, ast.Raise | ast.Assert) or _is_method_assert(one) for one in ast.walk(handler)
            )
    return False


def _is_failure(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("AssertionError", "Exception", "BaseException")


def _says_something(said: ast.expr) -> bool:
    return not always_holds(said) and any(isinstance(one, ast.Name) for one in ast.walk(said))


def _has_call(said: ast.expr) -> bool:
    return any(isinstance(one, ast.Call) for one in ast.walk(said))


def _told() -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(REACHED, ast.Load()), [], []))


def _source(body: Sequence[ast.stmt]) -> str:
    return ast.unparse(ast.Module([*body], []))


def _defines(node: ast.stmt) -> bool:
    return isinstance(node, _FUNCTION | ast.ClassDef)


def _is_test(name: str) -> bool:
    return name.startswith("test")  # pytest's default, python_functions


def _is_fixture(node: ast.stmt) -> bool:
    return isinstance(node, _FUNCTION) and node.name in _FIXTURES


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "__name__ == '__main__'",
        "'__main__' == __name__",
    )


def _is_candidate_import(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.ImportFrom)
        and node.module == _CANDIDATE
        and all(one.asname in (None, one.name) for one in node.names)
    )


def _is_method_assert(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "self"
        and node.func.attr.startswith(("assert", "fail"))
    )


def _is_case(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base) in ("unittest.TestCase", "TestCase") for base in node.bases)


def _tests_of(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    if not _is_case(node) and not node.name.startswith("Test"):  # pytest's default, python_classes
        return []
    return [one for one in node.body if isinstance(one, _FUNCTION) and _is_test(one.name)]


def _function_call(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    _no_more_arguments(node, 0)
    return f"{node.name}()"


def _method_call(node: ast.ClassDef, method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    _no_more_arguments(method, 1)
    if _is_case(node):
        return f"import unittest\nunittest.TestSuite([{node.name}({method.name!r})]).debug()"
    if node.bases or any(_is_fixture(one) or getattr(one, "name", "") == "__init__" for one in _functions(node)):
        raise UncollectedError
    return f"{node.name}().{method.name}()"


def _functions(node: ast.ClassDef) -> Iterator[ast.stmt]:
    return (one for one in node.body if isinstance(one, _FUNCTION))


def _no_more_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, most: int) -> None:
    asked = node.args
    n_required = len(asked.posonlyargs) + len(asked.args) - len(asked.defaults)
    n_required += sum(default is None for default in asked.kw_defaults)
    if isinstance(node, ast.AsyncFunctionDef) or node.decorator_list or n_required != most:
        raise UncollectedError

"""Finds the tests that pytest and unittest would collect and writes code that calls them.

Also finds what makes an assertion no test: that it always holds, or that nothing runs it.
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
    """Raised for tests that a test runner could run but this module cannot, such as those with fixtures."""


class CollectedTests(NamedTuple):
    """The source code of collected tests, with the definitions that run before them."""

    before: list[str]
    """Definitions and what else asserts nothing."""
    tests: list[str]
    bodies: list[ast.Module] | None
    """The same tests as plain statements, where each is the body of a function."""


def collect_tests(source: str, tree: ast.Module) -> CollectedTests:
    """Finds the tests that pytest or unittest would run and writes code that calls them.

    Raises UncollectedError for tests that cannot be called.
    """
    statements = [node for node in tree.body if not _is_main_guard(node) and not _is_candidate_import(node)]
    called = {name.id for node in statements for name in ast.walk(node) if isinstance(name, ast.Name)}
    functions = [
        node
        for node in statements
        if isinstance(node, _FUNCTION) and _is_test_name(node.name) and node.name not in called
    ]
    classes = [
        node
        for node in statements
        if isinstance(node, ast.ClassDef) and node.name not in called and _list_test_methods(node)
    ]
    if any(_is_setup_function(node) for node in statements):
        raise UncollectedError
    calls = [_write_function_call(node) for node in functions]
    calls += [_write_method_call(node, method) for node in classes for method in _list_test_methods(node)]
    if not calls:
        return CollectedTests([], [source if len(statements) == len(tree.body) else _write_source(statements)], None)
    rest = [node for node in statements if node not in functions]
    is_tested = bool(_list_asserts([node for node in rest if not _is_definition(node)]))
    before, tests = ([], [_write_source(statements), *calls]) if is_tested else ([_write_source(statements)], calls)
    is_plain = all(isinstance(node, ast.Import | ast.ImportFrom) for node in rest)
    bodies = [ast.Module([*rest, *node.body], []) for node in functions] if is_plain else None
    return CollectedTests(before, tests, bodies)


def always_holds(expression: ast.expr) -> bool:
    """Returns whether an asserted expression is true whatever the candidate's code does.

    Such as `(f(1) == 2, "x")` and `f(1) == 2 or True`.
    """
    match expression:
        case ast.Constant(value=value):
            return bool(value)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return bool(elements)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(map(always_holds, values))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(map(always_holds, values))
    return isinstance(expression, ast.Lambda)


def has_vacuous_assertion(tree: ast.AST) -> bool:
    """Returns whether code contains an assertion that looks like a test of a call but cannot fail."""
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert) and _has_call(node.test)]
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try) and _swallows_failure(node)]
    swallowed = [assertion for node in tries for assertion in _list_asserts(node.body)]
    return any(always_holds(assertion.test) or assertion in swallowed for assertion in asserts)


def surely_asserts(statements: Sequence[ast.stmt]) -> bool:
    """Returns whether running statements to their end always evaluates at least one meaningful assertion."""
    for statement in statements:
        if isinstance(statement, ast.Assert) and _tests_something(statement.test):
            return True
        if any(isinstance(node, ast.Return) for node in ast.walk(statement)):
            return False
    return False


def has_unittest_assertion(trees: Sequence[ast.AST]) -> bool:
    """Returns whether code contains a unittest assertion, such as a call of `self.assertEqual`."""
    return any(_is_unittest_assertion(node) for tree in trees for node in ast.walk(tree))


def mark_reached_assertions(tree: ast.Module) -> str:
    """Inserts a call of `REACHED` after each assertion of a test source, and where an expected exception is caught."""
    return ast.unparse(ast.fix_missing_locations(_ReachedMarker().visit(tree)))


class _ReachedMarker(ast.NodeTransformer):
    """A syntax-tree transformer that inserts a call of `REACHED` after every assertion."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST | list[ast.AST]:
        """Inserts the call of `REACHED` after an `assert` statement that tests something."""
        return [node, _make_reached_call()] if _tests_something(node.test) else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.AST]:
        """Inserts the call of `REACHED` after a unittest assertion call."""
        return [node, _make_reached_call()] if _is_unittest_assertion(node.value) else node

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.AST]:
        """Inserts the call of `REACHED` after a `with self.assertRaises(...)` block."""
        self.generic_visit(node)
        return (
            [node, _make_reached_call()]
            if any(_is_unittest_assertion(item.context_expr) for item in node.items)
            else node
        )

    def visit_Try(self, node: ast.Try) -> ast.AST:
        """Inserts the call of `REACHED` into `except` handlers that catch an expected exception."""
        expects = _list_asserts(node.orelse) or (_list_asserts(node.body) and not _swallows_failure(node))
        self.generic_visit(node)
        for handler in node.handlers if expects else ():
            handler.body.insert(0, _make_reached_call())
        return node


def _list_asserts(statements: Sequence[ast.stmt]) -> list[ast.AST]:
    """Lists all `assert` statements in a sequence of statements, at any depth."""
    return [node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Assert)]


def _swallows_failure(node: ast.Try) -> bool:
    """Returns whether a `try` statement silently catches a failing assertion in its body."""
    for handler in node.handlers:
        if handler.type is None or any(_catches_assertion_error(part) for part in ast.walk(handler.type)):
            return not any(
                isinstance(part, ast.Raise | ast.Assert) or _is_unittest_assertion(part) for part in ast.walk(handler)
            )
    return False


def _catches_assertion_error(node: ast.AST) -> bool:
    """Returns whether the exception class named in an `except` clause includes AssertionError."""
    return isinstance(node, ast.Name) and node.id in ("AssertionError", "Exception", "BaseException")


def _tests_something(expression: ast.expr) -> bool:
    """Returns whether an asserted expression depends on a name and can be false."""
    return not always_holds(expression) and any(isinstance(node, ast.Name) for node in ast.walk(expression))


def _has_call(expression: ast.expr) -> bool:
    """Returns whether an expression contains a call."""
    return any(isinstance(node, ast.Call) for node in ast.walk(expression))


def _make_reached_call() -> ast.Expr:
    """Makes the statement that records that an assertion was evaluated."""
    return ast.Expr(ast.Call(ast.Name(REACHED, ast.Load()), [], []))


def _write_source(statements: Sequence[ast.stmt]) -> str:
    """Converts syntax-tree statements to Python source text."""
    return ast.unparse(ast.Module([*statements], []))


def _is_definition(node: ast.stmt) -> bool:
    """Returns whether a statement defines a function or a class."""
    return isinstance(node, _FUNCTION | ast.ClassDef)


def _is_test_name(name: str) -> bool:
    """Returns whether pytest would collect a function of this name as a test."""
    return name.startswith("test")  # pytest's default, python_functions


def _is_setup_function(node: ast.stmt) -> bool:
    """Returns whether a statement is a set-up function of pytest or unittest."""
    return isinstance(node, _FUNCTION) and node.name in _FIXTURES


def _is_main_guard(node: ast.stmt) -> bool:
    """Returns whether a statement is `if __name__ == '__main__':`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "__name__ == '__main__'",
        "'__main__' == __name__",
    )


def _is_candidate_import(node: ast.stmt) -> bool:
    """Returns whether a statement imports the candidate's function from `solution` without renaming it."""
    return (
        isinstance(node, ast.ImportFrom)
        and node.module == _CANDIDATE
        and all(alias.asname in (None, alias.name) for alias in node.names)
    )


def _is_unittest_assertion(node: ast.AST) -> bool:
    """Returns whether a syntax-tree node is a call of `self.assert...` or `self.fail...`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "self"
        and node.func.attr.startswith(("assert", "fail"))
    )


def _is_test_case(node: ast.ClassDef) -> bool:
    """Returns whether a class is a `unittest.TestCase`."""
    return any(ast.unparse(base) in ("unittest.TestCase", "TestCase") for base in node.bases)


def _list_test_methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Lists the methods of a class that pytest or unittest would run as tests."""
    if not _is_test_case(node) and not node.name.startswith("Test"):  # pytest's default, python_classes
        return []
    return [method for method in node.body if isinstance(method, _FUNCTION) and _is_test_name(method.name)]


def _write_function_call(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Writes the source code that calls a test function. Raises UncollectedError if the function takes arguments."""
    _check_argument_count(node, 0)
    return f"{node.name}()"


def _write_method_call(node: ast.ClassDef, method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Writes the source code that runs a test method on an instance of its class.

    Raises UncollectedError if it takes arguments.
    """
    _check_argument_count(method, 1)
    if _is_test_case(node):
        return f"import unittest\nunittest.TestSuite([{node.name}({method.name!r})]).debug()"
    if node.bases or any(
        _is_setup_function(function) or getattr(function, "name", "") == "__init__" for function in _list_methods(node)
    ):
        raise UncollectedError
    return f"{node.name}().{method.name}()"


def _list_methods(node: ast.ClassDef) -> Iterator[ast.stmt]:
    """Yields the functions defined in a class body."""
    return (statement for statement in node.body if isinstance(statement, _FUNCTION))


def _check_argument_count(node: ast.FunctionDef | ast.AsyncFunctionDef, n_arguments: int) -> None:
    """Raises UncollectedError unless a test function needs exactly `n_arguments` arguments.

    An async or decorated function is refused too.
    """
    arguments = node.args
    n_required = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    n_required += sum(default is None for default in arguments.kw_defaults)
    if isinstance(node, ast.AsyncFunctionDef) or node.decorator_list or n_required != n_arguments:
        raise UncollectedError

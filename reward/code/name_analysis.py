"""Analyses which names in test code belong to the candidate, which are modules, and which the tests define."""

import ast
import builtins
import sys
from collections.abc import Sequence

MODULES = frozenset(
    {"math", "cmath", "sys", "re", "collections", "itertools", "functools", "random", "string", "datetime", "copy"}
    | {"json", "heapq", "bisect", "operator", "statistics", "decimal", "fractions", "typing"}
)
"""Modules a test may name without importing them: MBPP's rely on the candidate's own imports."""


def list_asserts(trees: Sequence[ast.AST]) -> list[ast.AST]:
    """Lists all `assert` statements in syntax trees."""
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def list_called_names(trees: Sequence[ast.AST]) -> set[str]:
    """Returns the names in the function part of each call, such as `f` and `g` in `f(g)(x)`."""
    callees = (node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {name.id for callee in callees for name in ast.walk(callee) if isinstance(name, ast.Name)}


def list_free_names(trees: Sequence[ast.AST]) -> set[str]:
    """Returns the names that code uses without binding them, except built-in ones.

    These are the candidate's, and modules'.
    """
    return list_used_names(trees) - list_bound_names(trees) - set(dir(builtins))


def list_used_names(trees: Sequence[ast.AST]) -> set[str]:
    """Returns the names that code reads."""
    names = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Load)}


def list_bound_names(trees: Sequence[ast.AST]) -> set[str]:
    """Returns the names that code binds by assignment, definition, import, parameter or `except` clause."""
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


def pick_module_names(trees: Sequence[ast.AST], free_names: set[str]) -> set[str]:
    """Returns those free names that are known modules and used only for their attributes."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bases = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    with_attribute = {id(base) for base in bases if isinstance(base, ast.Name)}
    alone = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in with_attribute}
    return (free_names & MODULES) - alone


def list_outermost_calls(trees: Sequence[ast.Module]) -> set[str]:
    """Returns the names of the functions that asserts call outermost, such as `len` in `assert len(f(1)) == 2`."""
    names = set()
    for node in list_asserts(trees):
        assert isinstance(node, ast.Assert)
        expression = node.test.left if isinstance(node.test, ast.Compare) else node.test
        if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name):
            names.add(expression.func.id)
    return names


def imports_only_stdlib(trees: Sequence[ast.AST]) -> bool:
    """Returns whether code imports only Python's standard library and numpy."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | {"numpy"}

"""Analyses the names in test code: which are the candidate's, which modules, which the tests' own."""

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
    """Returns the `assert` statements of the code."""
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def list_called_names(trees: Sequence[ast.AST]) -> set[str]:
    """Returns the names in what the code calls, such as `f` and `g` in `f(g)(x)`."""
    callees = (node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {name.id for callee in callees for name in ast.walk(callee) if isinstance(name, ast.Name)}


def list_free_names(trees: Sequence[ast.AST]) -> set[str]:
    """Returns the names that the code uses and binds nowhere, built-in ones aside.

    These are the candidate's, and modules'.
    """
    return list_used_names(trees) - list_bound_names(trees) - set(dir(builtins))


def list_used_names(trees: Sequence[ast.AST]) -> set[str]:
    """Returns the names that the code reads."""
    names = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Load)}


def list_bound_names(trees: Sequence[ast.AST]) -> set[str]:
    """Returns the names that the code binds: assigned, defined, imported, parameters, caught exceptions."""
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
    """Returns those of the free names that are modules: known ones of which only attributes are used."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bases = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    with_attribute = {id(base) for base in bases if isinstance(base, ast.Name)}
    alone = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in with_attribute}
    return (free_names & MODULES) - alone


def list_tested_builtins(trees: Sequence[ast.Module]) -> set[str]:
    """Returns the built-in functions that the asserts call outermost: what is tested where they call nothing else."""
    names = set()
    for node in list_asserts(trees):
        assert isinstance(node, ast.Assert)
        expression = node.test.left if isinstance(node.test, ast.Compare) else node.test
        if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name):
            names.add(expression.func.id)
    return names


def imports_only_stdlib(trees: Sequence[ast.AST]) -> bool:
    """Returns whether all modules imported are of Python's library, or numpy."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | {"numpy"}

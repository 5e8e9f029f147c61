"""The names and assertions in test code: what of it is the candidate's, what a module's, what its own."""

import ast
import builtins
import sys
from collections.abc import Sequence

MODULES = frozenset(
    {"math", "cmath", "sys", "re", "collections", "itertools", "functools", "random", "string", "datetime", "copy"}
    | {"json", "heapq", "bisect", "operator", "statistics", "decimal", "fractions", "typing"}
)
"""Modules a test may name without importing them: MBPP's rely on the candidate's own imports."""


def asserts(trees: Sequence[ast.AST]) -> list[ast.AST]:
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def called_names(trees: Sequence[ast.AST]) -> set[str]:
    calls = (node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {name.id for call in calls for name in ast.walk(call) if isinstance(name, ast.Name)}


def free_names(trees: Sequence[ast.AST]) -> set[str]:
    """The names that the code uses and binds nowhere, built-in ones aside: those of the candidate, and of modules."""
    return used_names(trees) - bound_names(trees) - set(dir(builtins))


def used_names(trees: Sequence[ast.AST]) -> set[str]:
    names = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Load)}


def bound_names(trees: Sequence[ast.AST]) -> set[str]:
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


def module_names(trees: Sequence[ast.AST], free: set[str]) -> set[str]:
    """Those of the names that are modules: known ones of which only attributes are used."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bases = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    inside = {id(base) for base in bases if isinstance(base, ast.Name)}
    alone = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in inside}
    return (free & MODULES) - alone


def builtin_subjects(trees: Sequence[ast.Module]) -> set[str]:
    """The built-in functions that the asserts call outermost: what is under test where they call nothing else."""
    found = set()
    for node in asserts(trees):
        assert isinstance(node, ast.Assert)
        said = node.test.left if isinstance(node.test, ast.Compare) else node.test
        if isinstance(said, ast.Call) and isinstance(said.func, ast.Name):
            found.add(said.func.id)
    return found


def importable(trees: Sequence[ast.AST]) -> bool:
    """Whether the modules imported are of Python's library, or numpy."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in named} <= sys.stdlib_module_names | {"numpy"}

"""Reads the source code of a function defined in a script or notebook, to run it from a file of its own."""

import builtins
import dis
import inspect
import symtable
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from qwen_align.align.errors import RecipeError


class FunctionSource(NamedTuple):
    """A function's name and the text of a Python file that defines it."""

    name: str
    source: str


def read_function_source(function: Callable[..., Any], where: str) -> FunctionSource:
    """Returns the source code of a Python function as a file of its own that a worker process can run.

    `where` opens the error. Raises RecipeError, which says how to write the file by hand, for a lambda, a closure, a
    method, a function that uses names which it neither defines nor imports, and one whose source is not to be had.
    """
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        found = "a lambda" if isinstance(function, FunctionType) else f"{type(function).__name__}"
        raise _build_refusal(where, f"{found} is no function with a name and a source", "judge")
    name = function.__name__
    if function.__closure__:
        names = ", ".join(function.__code__.co_freevars)
        raise _build_refusal(where, f"'{name}' is a closure: it uses {names} of the function around it", name)
    try:
        source = textwrap.dedent(inspect.getsource(function))
        module = compile(source, f"{name}.py", "exec", dont_inherit=True)
    except (OSError, TypeError, SyntaxError) as error:
        raise _build_refusal(where, f"the source of '{name}' is not to be had: {error}", name) from None
    if unknown := sorted(_find_used_module_names(source, name, function)):
        said = f"'{name}' uses {', '.join(unknown)} from outside; import inside the function what it needs"
        raise _build_refusal(where, said, name)
    compiled = next((code for code in module.co_consts if isinstance(code, CodeType) and code.co_name == name), None)
    if compiled is None or list(_list_instructions(compiled)) != list(_list_instructions(function.__code__)):
        raise _build_refusal(where, f"the source of '{name}' is not what was run; its file has changed since", name)
    return FunctionSource(name, source)


def _build_refusal(where: str, fault: str, name: str) -> RecipeError:
    """Builds the RecipeError for a function whose source cannot be run from a file."""
    return RecipeError(
        f"{where}: {fault}. A file can hold what a function alone cannot; its cell begins with the first of these "
        "lines, and the second names it in the recipe:\n"
        f"    %%writefile my_{name}.py\n"
        f'    {{"kind": "python", "file": "my_{name}.py", "name": "{name}"}}'
    )


def _list_instructions(code: CodeType) -> Iterator[tuple[str, Any]]:
    """Yields the bytecode instructions of a code object with the names and constants they use.

    Those of inner functions are included; jumps come without their target.

    A call of an attribute is compiled in one of two ways, depending on what the module around the function imports:
    both come out the same.
    """
    for step in dis.get_instructions(code):
        if step.opname in ("CACHE", "PRECALL", "PUSH_NULL"):
            continue
        opname = (
            "LOAD_ATTR" if step.opname == "LOAD_METHOD" else "CALL" if step.opname == "CALL_METHOD" else step.opname
        )
        is_jump = step.opcode in dis.hasjrel or step.opcode in dis.hasjabs
        yield opname, None if is_jump or isinstance(step.argval, CodeType) else step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _list_instructions(constant)


def _find_used_module_names(source: str, name: str, function: FunctionType) -> set[str]:
    """Returns the names that a function's source uses from its module.

    Builtins and the function itself are left out.
    """
    used = set(_list_global_names(symtable.symtable(source, f"{name}.py", "exec"))) - {"__name__", name}
    return {global_name for global_name in used if not _is_builtin(global_name, function)}


def _is_builtin(name: str, function: FunctionType) -> bool:
    """Returns whether a name refers to a Python builtin that the function's module has not replaced."""
    known = vars(builtins)
    return name in known and function.__globals__.get(name, known[name]) is known[name]


def _list_global_names(table: symtable.SymbolTable) -> Iterator[str]:
    """Yields the global names that a symbol table and its nested tables refer to."""
    for symbol in table.get_symbols():
        is_module = table.get_type() == "module"
        if symbol.is_global() or (is_module and symbol.is_referenced() and not symbol.is_assigned()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _list_global_names(inner)

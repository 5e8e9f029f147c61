"""Loads the candidate's code as a Python module inside its sandbox cell."""

import re
import sys
import types
from collections.abc import Iterator
from typing import Any

END_REASONS = frozenset({"syntax error", "function not defined", "crashed", "exited early", "memory limit"})
"""What a candidate's cell may tell of its own end."""

CLOSED = "closed"
"""Told of a candidate that ended without a word: its own cell knows how."""

SYNTAX_STATUS = 112
"""How the cell of a program exits that does not compile."""


class UnloadedError(Exception):
    """Raised when the code gives no module or no function. The message is the verdict's reason."""


def load_module(job: dict[str, Any]) -> types.ModuleType:
    """Loads the candidate's code of a job as a module, from the first text that compiles.

    With a `prompt`, which ends in the head of the function `entry`, a text is the whole function or its body. Raises
    UnloadedError for what does not compile; whatever the code raises when it runs comes through.
    """
    sources = _compile_first(job["texts"], job.get("prompt"), job.get("entry"), frozenset(job.get("asked", ())))
    module = types.ModuleType(job["name"])
    sys.modules[job["name"]] = module
    for source in job.get("before", ()):
        exec(_compile_source(source), module.__dict__)
    for code in sources:
        exec(code, module.__dict__)
    return module


def find_function(module: types.ModuleType, name: str) -> Any:
    """Returns a module's function of the given name, or that method of its `Solution` class.

    Raises UnloadedError if there is none.
    """
    if name in module.__dict__:
        return module.__dict__[name]
    solution = module.__dict__.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return lambda *args, **kwargs: getattr(solution(), name)(*args, **kwargs)
    raise UnloadedError("function not defined")


def _compile_first(
    texts: list[str], prompt: str | None, entry: str | None, asked: frozenset[str]
) -> list[types.CodeType]:
    """Compiles the first text that is valid Python and does what is asked, and returns the code.

    If none does, that is the first valid text. Raises UnloadedError if no text is valid.
    """
    compiled: list[list[types.CodeType]] = []
    for text in texts:
        for sources in _list_possible_sources(text, prompt, entry):
            try:
                codes = [_compile_source(source) for source in sources]
            except (SyntaxError, ValueError, OverflowError, RecursionError):  # NUL bytes, lone surrogates, deep nesting
                continue
            if len(texts) == 1 or _does_what_is_asked(codes[-1], asked):
                return codes
            compiled.append(codes)
            break
    if not compiled:
        raise UnloadedError("syntax error")
    return compiled[0]


def _does_what_is_asked(code: types.CodeType, asked: frozenset[str]) -> bool:
    """Returns whether a module's code uses one of the names asked for at its top, or any if it is to be a program.

    The sample output and the calls that a completion shows after its code define nothing.
    """
    if not asked:
        return bool(code.co_names)
    defined = {constant.co_name for constant in code.co_consts if isinstance(constant, types.CodeType)}
    return not asked.isdisjoint(defined) or "Solution" in defined or _assigns_one_of(code, asked)


def _assigns_one_of(code: types.CodeType, names: frozenset[str]) -> bool:
    """Returns whether a module's code assigns one of the names at its top, as `f = lambda x: x` does."""
    import dis  # rarely needed, and each page the server holds is paid for again at every fork

    imported, previous = "", ""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            imported = step.argval
        is_own_import = previous == "IMPORT_FROM" and not _has_module(imported)  # `from solution import f`
        if step.opname == "STORE_NAME" and step.argval in names and not is_own_import:
            return True
        previous = step.opname
    return False


def _has_module(name: str) -> bool:
    """Returns whether a module can be imported here, by the first part of its name."""
    import importlib.util

    top_name = name.partition(".")[0]
    return top_name in sys.stdlib_module_names or (bool(top_name) and importlib.util.find_spec(top_name) is not None)


def _list_possible_sources(text: str, prompt: str | None, entry: str | None) -> Iterator[list[str]]:
    """Yields the sources that a completion may stand for: the whole function, or the body after the prompt."""
    if prompt is None:
        yield [text]
        return
    if re.search(rf"^(?:(?:async )?def|class)[ \t]+{entry}\b|^{entry}[ \t]*[=:]", text, re.MULTILINE):
        yield [complete_prompt(prompt), text]
    yield [prompt + text]
    if text[:1] not in " \t\n":  # a sampler that strips its text took the first line's indent away
        yield [f"{prompt}    {text}"]


def complete_prompt(prompt: str) -> str:
    """Adds a placeholder body to a prompt that ends in a function head."""
    return f"{prompt.rstrip()}\n    pass\n"


def _compile_source(source: str) -> types.CodeType:
    """Compiles one source text of the candidate's code."""
    return compile(source, "<solution>", "exec", dont_inherit=True)

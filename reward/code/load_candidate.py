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
    sources = _compile_first(job["texts"], job.get("prompt"), job.get("entry"))
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


def _compile_first(texts: list[str], prompt: str | None, entry: str | None) -> list[types.CodeType]:
    """Compiles the first text that is valid Python, with or without its prompt, and returns the code.

    Raises UnloadedError if none is.

    Raises UnloadedError if none is.
    """
    for text in texts:
        for sources in _list_possible_sources(text, prompt, entry):
            try:
                return [_compile_source(source) for source in sources]
            except (SyntaxError, ValueError, OverflowError, RecursionError):  # NUL bytes, lone surrogates, deep nesting
                continue
    raise UnloadedError("syntax error")


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

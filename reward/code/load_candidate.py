"""Loads the candidate's code as a module, inside its cell."""

import re
import sys
import types
from collections.abc import Iterator
from typing import Any

END_REASONS = frozenset({"syntax error", "function not defined", "crashed", "exited early", "memory limit"})
"""What a candidate's cell may tell of its own end."""

SYNTAX_STATUS = 112
"""How the cell of a program exits that does not compile."""


class UnloadedError(Exception):
    """Raised where the code gives no module or no function; the message is the verdict's reason."""


def load_module(job: dict[str, Any]) -> types.ModuleType:
    """Returns the module of a job: what goes `before` (sources), then the first of the `texts` that compiles.

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
    """Returns the module's object of a name, or the method of its `Solution`; raises UnloadedError."""
    if name in module.__dict__:
        return module.__dict__[name]
    solution = module.__dict__.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return lambda *args, **kwargs: getattr(solution(), name)(*args, **kwargs)
    raise UnloadedError("function not defined")


def _compile_first(texts: list[str], prompt: str | None, entry: str | None) -> list[types.CodeType]:
    """Returns the code of the first text that compiles, in any of its readings; raises UnloadedError."""
    for text in texts:
        for sources in _list_readings(text, prompt, entry):
            try:
                return [_compile_source(source) for source in sources]
            except (SyntaxError, ValueError, OverflowError, RecursionError):  # NUL bytes, lone surrogates, deep nesting
                continue
    raise UnloadedError("syntax error")


def _list_readings(text: str, prompt: str | None, entry: str | None) -> Iterator[list[str]]:
    """Yields the ways to read a completion after its prompt: as the whole function, or as its body."""
    if prompt is None:
        yield [text]
        return
    if re.search(rf"^(?:(?:async )?def|class)[ \t]+{entry}\b|^{entry}[ \t]*[=:]", text, re.MULTILINE):
        yield [complete_prompt(prompt), text]
    yield [prompt + text]
    if text[:1] not in " \t\n":  # a sampler that strips its text took the first line's indent away
        yield [f"{prompt}    {text}"]


def complete_prompt(prompt: str) -> str:
    """Returns the prompt with a body for the function whose head it ends in."""
    return f"{prompt.rstrip()}\n    pass\n"


def _compile_source(source: str) -> types.CodeType:
    """Compiles one source as the candidate's."""
    return compile(source, "<solution>", "exec", dont_inherit=True)

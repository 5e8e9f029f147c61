"""Implements `qwen-align engines`, which lists, installs and removes engines in environments of their own."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from qwen_align.align.engines.catalogue import parse_engine_name
from qwen_align.align.engines.environments import list_engines
from qwen_align.align.engines.install import (
    Installation,
    choose_device,
    examine_interpreter,
    install_engine,
    remove_engine,
)
from qwen_align.align.errors import RecipeError

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())


def check_options(action: str, name: str | None, device: str | None, python: Path | None) -> None:
    """Raises RecipeError for an option that an action would ignore, or a name that it lacks."""
    if action == "list" and name:
        raise RecipeError(f"engines list: lists all, and takes no name: '{name}'")
    if action != "list" and not name:
        raise RecipeError(f"engines {action}: say which engine: qwen-align engines {action} vllm")
    if action != "install" and (device or python):
        raise RecipeError(f"engines {action}: --device and --python go with install")


def describe_engines() -> Iterator[str]:
    """Yields a line for each engine: whether it is installed, what it holds, and what to do."""
    for engine in list_engines():
        yield f"{engine.name:<14}{engine.state}: {engine.found}" + (f"  -> {engine.advice}" if engine.advice else "")


def install(name: str, device: str, python: Path | None, console: Console, say: Callable[[str], None]) -> None:
    """Installs an engine from its lock and shows how far it is. Raises RecipeError, StageError."""
    engine = parse_engine_name(name)
    with Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(engine, total=None)
        installation = Installation(
            engine,
            choose_device(engine, device),
            examine_interpreter(python or Path(sys.executable)),
            say,
            lambda done, of: bar.update(task, completed=done, total=of),
        )
        install_engine(installation)


def remove(name: str, say: Callable[[str], None]) -> None:
    """Removes an engine. Raises RecipeError for an unknown name, StageError while it is being installed."""
    engine = parse_engine_name(name)
    say(f"{engine}: removed" if remove_engine(engine, say) else f"{engine}: is not installed")

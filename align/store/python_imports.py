"""Finds what a user's Python file depends on: the files and the installed packages that it imports.

Nothing is imported or run: imports are read from the source.
"""

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

OWN_PACKAGE = "qwen_align"  # of which code versions and library versions tell
SITE_FOLDERS = {"site-packages", "dist-packages"}


class Dependencies(NamedTuple):
    """What a Python file depends on besides itself.

    files: by a name that does not depend on where the file lies. packages: versions of installed packages by name, None
    for a module that is not there.
    """

    files: dict[str, Path]
    packages: dict[str, str | None]


def find_dependencies(file: Path) -> Dependencies:
    """Returns what a Python file depends on, through the files it imports in turn.

    Files are modules and packages from beside the file, or from another folder of the user's on Python's path. Of
    packages installed in site-packages the version stands for their files. What a module is called only while the code
    runs is not seen, nor are files that it reads: it may as well write them.
    """
    found = Dependencies({}, {})
    _add_dependencies(file.resolve(), file.resolve().parent, found)
    found.files.pop(file.name, None)  # a file that imports itself
    return found


def _add_dependencies(file: Path, home: Path, found: Dependencies) -> None:
    """Adds what one file depends on. `home`: the folder from which its neighbours are imported."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # whoever runs it says so
        return
    for name in dict.fromkeys(_list_imported_modules(tree)):
        _add_module(name, home, found)


def _add_module(name: str, home: Path, found: Dependencies) -> None:
    """Adds the module or package that an import names, from beside the file if there is one."""
    source = next((path for path in (home / name / "__init__.py", home / f"{name}.py") if path.is_file()), None)
    if source is None:
        if name in sys.stdlib_module_names or name in (OWN_PACKAGE, "__main__"):
            return
        source = _find_user_source(name)
    if source is None and _find_spec(name) is None and any((home / name).rglob("*.py")):
        source = home / name  # a package without __init__.py, which every other one of its name comes before
    if source is None:
        package = _find_package(name)
        found.packages[package] = find_version(package)
    elif source.is_dir() or source.name == "__init__.py":
        source = source if source.is_dir() else source.parent
        for path in sorted(source.rglob("*.py")):
            _add_file(f"{name}/{path.relative_to(source).as_posix()}", path, source.parent, found)
    else:
        _add_file(source.name, source, source.parent, found)


def _add_file(name: str, path: Path, home: Path, found: Dependencies) -> None:
    """Adds a file and what it depends on."""
    if name not in found.files:
        found.files[name] = path
        _add_dependencies(path, home, found)


def _find_user_source(name: str) -> Path | None:
    """Returns the file or folder of a module that lies in a folder of the user's, on Python's path or installed there.

    Returns None for what is installed in site-packages, and for what is not there.
    """
    spec = _find_spec(name)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    source = folders[0] if folders else Path(spec.origin) if spec.origin else None
    if source is None or not source.exists() or SITE_FOLDERS & set(source.parts):
        return None
    return source.resolve()


def _find_spec(name: str) -> ModuleSpec | None:
    """Returns where Python finds a module of a single name. Returns None where it finds none."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # such as of __main__
        return None


def _find_package(name: str) -> str:
    """Returns the name of the installed package that a module comes from, else the module's own."""
    return next(iter(_read_packages_by_module().get(name, [])), name)


@cache
def _read_packages_by_module() -> dict[str, list[str]]:
    """Returns the names of installed packages by the modules that they bring."""
    return {name: sorted(set(packages)) for name, packages in importlib.metadata.packages_distributions().items()}


def find_version(package: str) -> str | None:
    """Returns the version of an installed package. Returns None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _list_imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yields the first part of the name of every module that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and _get_called_name(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.isidentifier():
                yield first.value


def _get_called_name(function: ast.expr) -> str | None:
    """Returns the last part of the name of a function that is called. Returns None if it has no name."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None

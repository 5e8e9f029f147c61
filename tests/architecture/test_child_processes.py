"""Python processes that are started import nothing from the folder that a user happens to work in."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def list_python_commands(path: Path) -> Iterator[tuple[int, list[object]]]:
    """Yields (line, constants) of each command line in a file that starts Python."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
            yield node.lineno, [part.value for part in node.elts if isinstance(part, ast.Constant)]


def test_every_python_that_is_started_is_started_with_safe_paths() -> None:
    """Without -P a random.py or tty.py in the working folder is imported in place of Python's own."""
    files = [path for room in ("align", "reward", "data_builders") for path in (ROOT / room).rglob("*.py")]
    commands = [(path, *command) for path in files for command in list_python_commands(path)]
    assert len(commands) >= 7
    assert [(path.name, line) for path, line, parts in commands if "-P" not in parts] == []

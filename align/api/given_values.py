"""Replaces rows and functions in a recipe's settings by paths of files, and writes these files."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_align.align.api.function_source import read_function_source
from qwen_align.align.errors import DataError, RecipeError

# The settings that name a file of rows; one that names a file of Python is always called `file`.
ROW_FIELDS = ("path", "against_file", "scores_file")
FUNCTION_FIELD = "file"
INPUTS = "inputs"  # under the home folder


@dataclass(frozen=True)
class GivenFile:
    """A file to write for a Python value (rows or a function) that was given in place of a path."""

    name: str
    content: bytes

    def get_path(self, home: Path) -> Path:
        """Returns the path of the file, inputs/DIGEST/NAME under `home`.

        The same content has the same path in every recipe.
        """
        return home.resolve() / INPUTS / hashlib.sha256(self.content).hexdigest()[:16] / self.name

    def write(self, home: Path) -> None:
        """Writes the file under `home` unless it exists. Raises OSError when the file cannot be written."""
        path = self.get_path(home)
        if path.is_file() and path.read_bytes() == self.content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(self.content)
        partial.replace(path)


def replace_given_values(value: Any, where: str, field: str = "") -> Any:
    """Returns a copy of a recipe's settings with rows and functions replaced by `GivenFile` objects.

    Paths become strings, tuples become lists.

    `where` opens error messages: `Recipe(...): `, or with the place inside. `field` is the setting's own name. Raises
    DataError for rows that JSON cannot hold, RecipeError for functions that cannot be run from a file.
    """
    if is_data_frame(value) or (field in ROW_FIELDS and isinstance(value, list | tuple)):
        return GivenFile("rows.jsonl", encode_rows(value, where))  # rows without an id will be called rows:1, rows:2
    if isinstance(value, Mapping):
        return _replace_in_mapping(value, where, field)
    if isinstance(value, list | tuple):
        return [_replace_item(item, f"{where}[{index}]", field) for index, item in enumerate(value)]
    if callable(value):
        raise RecipeError(
            f"{where}: a function can stand in a list of rewards, or as the `file` of a reward or a classifier; "
            "call what makes rows, and give what it returns"
        )
    return str(value) if isinstance(value, Path) else value


def _replace_in_mapping(settings: Mapping[Any, Any], where: str, field: str) -> dict[Any, Any]:
    replaced: dict[Any, Any] = {}
    for name, value in settings.items():
        place = f"{where}{name}" if where.endswith(": ") else f"{where}.{name}"
        group, dot, last = str(name).rpartition(".")  # dotted under `matrix`, `tiny`, `change` and in overrides
        if field == "matrix" and isinstance(value, list | tuple):
            replaced[name] = [replace_given_values(item, place, last) for item in value]
        elif last == FUNCTION_FIELD and callable(value):
            function = read_function_source(value, place)
            # The file's name must not hide a module that the function imports.
            replaced[name] = GivenFile(f"{function.name}_function.py", function.source.encode())
            if (name_of_function := f"{group}{dot}name") not in settings:
                replaced[name_of_function] = function.name
        else:
            replaced[name] = replace_given_values(value, place, last)
    return replaced


def _replace_item(item: Any, where: str, field: str) -> Any:
    if callable(item) and field == "rewards":
        return _replace_in_mapping({"kind": "python", FUNCTION_FIELD: item}, where, "")
    if field == "stages" and isinstance(item, Mapping) and "name" in item:
        where = f"{where.rpartition(': ')[0]}: stage '{item['name']}': "
    return replace_given_values(item, where, field)


def fill_in_paths(value: Any, home: Path) -> Any:
    """Returns a copy of the settings with every `GivenFile` replaced by its path under `home`."""
    if isinstance(value, GivenFile):
        return str(value.get_path(home))
    if isinstance(value, dict):
        return {name: fill_in_paths(item, home) for name, item in value.items()}
    return [fill_in_paths(item, home) for item in value] if isinstance(value, list) else value


def write_given_files(value: Any, home: Path) -> None:
    """Writes every `GivenFile` in the settings under `home`. Raises OSError when a file cannot be written."""
    if isinstance(value, GivenFile):
        value.write(home)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            write_given_files(item, home)


def is_data_frame(value: Any) -> bool:
    """Returns whether a value is a pandas DataFrame, without importing pandas."""
    return type(value).__name__ == "DataFrame" and hasattr(value, "to_dict") and hasattr(value, "columns")


def encode_rows(rows: Any, where: str) -> bytes:
    """Encodes rows (a list of dicts or a DataFrame) as JSON Lines in UTF-8.

    Missing cells of a DataFrame become null.

    A DataFrame's index is left out. Raises DataError naming the row for a value that JSON cannot hold.
    """
    values = _list_records(rows, where) if is_data_frame(rows) else rows
    return b"".join(_encode_row(row, f"{where}: row {number}") for number, row in enumerate(values, start=1))


def _encode_row(row: Any, where: str) -> bytes:
    """Encodes one row as a JSON line. Raises DataError for a value that JSON cannot hold."""
    try:
        text = json.dumps(row, ensure_ascii=False, default=_to_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: JSON cannot hold it: {error}; give texts, numbers, lists and dicts") from None
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which the reader refuses or counts as in any file
        return json.dumps(row, default=_to_plain).encode() + b"\n"


def _list_records(frame: Any, where: str) -> Iterable[dict[str, Any]]:
    names = list(frame.columns)
    if odd := [name for name in names if not isinstance(name, str) or names.count(name) > 1]:
        raise DataError(f"{where}: column {odd[0]!r}: a column's name must be a text that no other column has")
    for record in frame.to_dict(orient="records"):
        yield {name: None if _is_missing(cell) else cell for name, cell in record.items()}


def _is_missing(cell: Any) -> bool:
    return type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and cell != cell)


def _to_plain(value: Any) -> Any:
    """Converts a numpy number or array to a plain Python value for JSON. Raises TypeError for any other type."""
    to_list: Callable[[], Any] | None = getattr(value, "tolist", None)
    if type(value).__module__.partition(".")[0] != "numpy" or to_list is None:
        raise TypeError(f"{value!r} is {type(value).__name__}")
    return to_list()

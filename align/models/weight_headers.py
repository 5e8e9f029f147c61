"""Reads what tensors a model folder's safetensors files hold, from their headers alone.

A file is 8 bytes with the length of its header, the header (JSON: name, dtype, shape and place of each tensor), and the
numbers. Nothing here imports torch.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.errors import RecipeError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LFS_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024  # a pointer has about 130
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # of two tensors that should be one: what is read to compare them
FLOATS = {"F64", "F32", "F16", "BF16"}


class StoredTensor(NamedTuple):
    """A tensor as a safetensors file has it."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int  # of its bytes in the file
    n_bytes: int


def read_stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a model folder's weights by name, those of all shards together.

    Raises RecipeError where a file is missing, cut short or no safetensors file, or two shards have the same tensor.
    """
    stored: dict[str, StoredTensor] = {}
    for file in _list_weight_files(folder):
        header = read_header(folder / file)
        first = _find_first_byte(folder / file)
        for name, entry in header.items():
            if name in stored:
                raise RecipeError(
                    f"{folder}: {name} is in two of its shards, {stored[name].file} and {file}, and only one can be "
                    "meant; take the shards of one download or save, and remove others"
                )
            begin, end = entry["data_offsets"]
            stored[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), file, first + begin, end - begin)
    return stored


def differ_in_samples(folder: Path, one: StoredTensor, other: StoredTensor) -> bool:
    """Returns whether two tensors of a folder have other numbers at any of some places spread over them."""
    if one[:2] != other[:2]:
        return True
    with (folder / one.file).open("rb") as first, (folder / other.file).open("rb") as second:
        for number in range(_SAMPLES):
            offset = max(0, one.n_bytes - _SAMPLE_BYTES) * number // (_SAMPLES - 1)
            first.seek(one.begin + offset)
            second.seek(other.begin + offset)
            n_bytes = min(_SAMPLE_BYTES, one.n_bytes - offset)
            if first.read(n_bytes) != second.read(n_bytes):
                return True
    return False


def _find_first_byte(path: Path) -> int:
    """Returns where the numbers of a safetensors file begin."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the header of a safetensors file, without its metadata. Raises RecipeError for any other file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or not 2 <= length <= min(_LARGEST_HEADER, max(size, 2)):
            raise RecipeError(f"{path}: is no safetensors file, or is cut short ({size:,} bytes); download it again")
        header_bytes = file.read(length)
    try:
        header = json.loads(header_bytes)
        del header_bytes
        entries = {str(name): dict(entry) for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        fitting = all(_has_its_bytes(entry) for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        is_cut = 8 + length > size
        raise RecipeError(
            f"{path}: {'is cut short inside its header' if is_cut else 'its header is damaged'}; download it again"
        ) from None
    if size != 8 + length + end or not fitting:
        state = "is cut short" if size < 8 + length + end else "is damaged"
        raise RecipeError(
            f"{path}: {state}: its header promises {8 + length + end:,} bytes, it has {size:,}; download it again"
        )
    return entries


def is_lfs_pointer(path: Path) -> bool:
    """Returns whether a file is a git-lfs pointer, which stands for a file that was not downloaded."""
    if not path.is_file() or path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def refuse_lfs_pointers(folder: Path) -> None:
    """Raises RecipeError when files of a model folder are git-lfs pointers."""
    pointers = [path.name for path in sorted(folder.iterdir()) if is_lfs_pointer(path)]
    if pointers:
        raise RecipeError(
            f"{folder}: {', '.join(pointers[:3])}{' and others' if len(pointers) > 3 else ''}: a git-lfs pointer, not "
            "the file itself; fetch it with `git lfs pull`, or download the model with `hf download`"
        )


def _list_weight_files(folder: Path) -> Iterator[str]:
    """Yields the names of the files that transformers reads a model's weights from.

    Raises RecipeError when there are none, or a shard is missing.
    """
    if (folder / SINGLE).exists():
        yield SINGLE
        return
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != ADAPTER_WEIGHTS)
    if not (folder / INDEX).exists():
        found = f"; found {', '.join(others[:3])}" if others else ""
        bins = ", ".join(sorted(path.name for path in folder.glob("*.bin"))[:3])
        hint = f"; {bins} is a pickle: convert it to safetensors" if bins and not others else ""
        raise RecipeError(f"{folder}: has neither {SINGLE} nor {INDEX}{found}{hint}")
    shards = sorted(set(_read_index(folder / INDEX).values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RecipeError(
            f"{folder}: {len(missing)} of its {len(shards)} shards are missing: {', '.join(missing[:3])}{more}; "
            f"{INDEX} names them: download the model again"
        )
    yield from shards


def _read_index(path: Path) -> Mapping[str, str]:
    """Returns the file of each tensor from the index of a sharded model. Raises RecipeError where it cannot be read."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecipeError(f"{path}: is no index of safetensors shards (weight_map); download it again") from None


def _has_its_bytes(entry: Mapping[str, Any]) -> bool:
    """Returns whether a tensor of a header has as many bytes as its shape and dtype ask for."""
    start, end = entry["data_offsets"]
    size = _BYTES.get(entry["dtype"])
    is_ordered = 0 <= start <= end
    return is_ordered and (size is None or end - start == prod(entry["shape"]) * size)

"""Makes a folder of a model whose rotary positions are scaled by YaRN: a config.json, and links to its other files.

Whoever reads a model from a folder, an engine elsewhere or an export too, then reads the scaling, and the model's own
folder stays as it is. Nothing here imports torch.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.rotary_scaling import extend_by_yarn
from qwen_align.align.models.weight_check import read_model_config
from qwen_align.align.settings.yarn import Yarn
from qwen_align.align.store.files import read_json, write_json

CONFIG = "config.json"


def make_extended_folder(folder: Path, yarn: Yarn, parent: Path) -> Path:
    """Makes the folder of a model with YaRN inside `parent`, or brings it up to date, and returns it.

    Its name is that of its content. Raises RecipeError for a model that cannot be scaled.
    """
    config = read_model_config(folder)
    try:
        extended = extend_by_yarn(config, yarn)
    except ValueError as error:
        raise RecipeError(f"{folder}: {error}") from None
    named = f"{folder.resolve()}#{yarn.model_dump_json()}"
    target = parent / f"yarn-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
    target.mkdir(parents=True, exist_ok=True)
    wanted = {path.relative_to(folder): path.resolve() for path in _list_files(folder)}
    for stale in [path for path in target.rglob("*") if path.is_symlink()]:
        if wanted.get(stale.relative_to(target)) != stale.readlink():
            stale.unlink(missing_ok=True)
    for name, path in wanted.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # it is there, or another process makes it now
            (target / name).symlink_to(path)
    if not (target / CONFIG).exists() or read_json(target / CONFIG) != extended:
        write_json(target / CONFIG, extended)
    return target


def _list_files(folder: Path) -> Iterator[Path]:
    """Yields the files of a model folder but its config.json, hidden ones left out."""
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and str(inside) != CONFIG and not any(part.startswith(".") for part in inside.parts):
            yield path

"""Reads model.json, which says in a stage's folder what its model consists of. Nothing here imports torch."""

from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.errors import StageError
from qwen_align.align.settings.yarn import Yarn
from qwen_align.align.store.files import read_json

MODEL = "model.json"  # in a stage's folder: what its model consists of, see models/loading.py
_WITHOUT_ADAPTER = "#without-adapter"  # ends the name of a hub model whose own adapter is ignored
_YARN = "#yarn="  # and this with settings that of one whose positions are scaled


class ModelFiles(NamedTuple):
    """The base model and the adapters to be merged into it, first to last."""

    base: str
    adapters: list[Path]


class HubModel(NamedTuple):
    """A model on the hub: its id, its commit, whether an adapter beside it is ignored, and YaRN that it is given."""

    name: str
    revision: str
    ignores_adapter: bool
    yarn: Yarn | None = None


def name_hub_model(name: str, revision: str, *, ignores_adapter: bool, yarn: Yarn | None = None) -> str:
    """Returns the text that stands for a hub model where others have a folder: `hub:ID@COMMIT`."""
    scaled = f"{_YARN}{yarn.model_dump_json(exclude_none=True)}" if yarn else ""
    return f"hub:{name}@{revision}{_WITHOUT_ADAPTER if ignores_adapter else ''}{scaled}"


def parse_hub_model(base: str) -> HubModel:
    """Parses what `name_hub_model` returned."""
    base, _, scaled = base.partition(_YARN)
    name, _, revision = base.removeprefix("hub:").removesuffix(_WITHOUT_ADAPTER).partition("@")
    yarn = Yarn.model_validate_json(scaled) if scaled else None
    return HubModel(name, revision, base.endswith(_WITHOUT_ADAPTER), yarn)


def locate_model_files(folder: Path) -> ModelFiles:
    """Returns the base model and adapters of a stage's folder, a model folder or `hub:ID@COMMIT`."""
    if not (folder / MODEL).exists():
        return ModelFiles(str(folder), [])
    description = read_model_description(folder)
    if "model" in description:
        return ModelFiles(str(folder / description["model"]), [])
    base = description["base"]
    if not base.startswith("hub:"):
        base = str(folder / base)
    return ModelFiles(base, [folder / adapter for adapter in description["adapters"]])


def read_model_description(folder: Path) -> dict[str, Any]:
    """Reads the model.json of a stage's folder.

    It has either `model`, or `base` and a list of `adapters`. Raises StageError when it does not.
    """
    try:
        description = read_json(folder / MODEL)
        adapters = description.get("adapters", [])
        if not isinstance(adapters, list):
            raise ValueError("adapters: not a list")
        paths = [description["model"]] if "model" in description else [description["base"], *adapters]
        if not all(isinstance(path, str) for path in paths):
            raise ValueError("not a path")
    except (ValueError, KeyError):
        raise StageError(
            f"{folder / MODEL}: is damaged; delete {folder / 'manifest.json'} to make the stage again"
        ) from None
    return {"adapters": [], **description}


def list_base_paths(folder: Path) -> list[Path]:
    """Returns the paths of the base model and adapters that a stage's model builds on.

    The list is empty for a whole model and for other folders. Raises StageError when model.json is damaged.
    """
    if not (folder / MODEL).exists():
        return []
    description = read_model_description(folder)
    paths = [path for path in (description.get("base"), *description["adapters"]) if path]
    return [folder / path for path in paths if not path.startswith("hub:")]


def is_stage_folder(folder: Path) -> bool:
    """Returns whether the folder is that of a finished stage which made a model."""
    return (folder / MODEL).is_file() and (folder / "manifest.json").is_file()


def find_base_folder(folder: Path) -> Path | None:
    """Returns the folder of a model's config and tokenizer.

    For a stage's folder it is that of its model or base. Returns None if the base is on the hub.
    """
    if not is_stage_folder(folder):
        return folder
    base = locate_model_files(folder).base
    return None if base.startswith("hub:") else Path(base)

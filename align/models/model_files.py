"""Finds the folders of shipped and local models without loading the models.

Nothing here imports torch.
"""

from importlib.resources import files
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.recipe import ModelSource
from qwen_align.align.store.files import read_json

MODEL = "model.json"  # in a stage's folder: what its model consists of, see models/loading.py


def find_model_folder(source: ModelSource) -> Path:
    """Returns the folder of a shipped model, a local model or a finished stage's model.

    Raises RecipeError when it holds no model.
    """
    shipped = Path(str(files("qwen_align") / "recipes"))
    folder = shipped / source.shipped if source.shipped else Path(str(source.path))
    if is_stage_folder(folder):
        return folder
    missing = next((name for name in ("config.json", "*.safetensors") if not any(folder.glob(name))), None)
    if missing:
        problem = f"it has no {missing}" if folder.is_dir() else "no such folder"
        raise RecipeError(f"{folder}: {problem}; a model folder in Hugging Face form is wanted, weights in safetensors")
    return folder


def is_stage_folder(folder: Path) -> bool:
    """Returns whether the folder is that of a finished stage which made a model."""
    return (folder / MODEL).is_file() and (folder / "manifest.json").is_file()


def find_base_folder(folder: Path) -> Path | None:
    """Returns the folder of a model's config and tokenizer.

    For a stage's folder it is that of its model or base. Returns None if the base is on the hub.
    """
    if not is_stage_folder(folder):
        return folder
    described = read_json(folder / MODEL)
    base = described.get("model") or described["base"]
    return None if base.startswith("hub:") else folder / base

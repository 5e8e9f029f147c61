"""Finds the folders of shipped and local models without loading the models.

Nothing here imports torch.
"""

from importlib.resources import files
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.extended_folder import make_extended_folder
from qwen_align.align.models.model_description import is_stage_folder, name_hub_model
from qwen_align.align.models.weight_check import refuse_adapter_alone
from qwen_align.align.models.weight_headers import refuse_lfs_pointers
from qwen_align.align.settings.recipe import ModelSource


def find_model_folder(source: ModelSource, extended: Path) -> Path:
    """Returns the folder of a shipped model, a local model or a finished stage's model, or what names a hub model.

    `extended`: where a local model that is given YaRN gets a folder with another config.json. Raises RecipeError when
    there is no model.
    """
    if source.hub:
        ignores = source.adapter == "ignore"
        return Path(name_hub_model(source.hub, source.revision or "", ignores_adapter=ignores, yarn=source.yarn))
    folder = _find_local_folder(source)
    if source.yarn is None:
        return folder
    if is_stage_folder(folder):
        raise RecipeError(
            f"{folder}: yarn is for a model folder, and this is a finished stage's; name the folder of the model that "
            f"it made ({folder / 'model'}), or say yarn of the model that it started from"
        )
    return make_extended_folder(folder, source.yarn, extended)


def _find_local_folder(source: ModelSource) -> Path:
    """Returns the folder of a model on this machine. Raises RecipeError when it holds no model."""
    shipped = Path(str(files("qwen_align") / "recipes"))
    folder = shipped / source.shipped if source.shipped else Path(str(source.path))
    if is_stage_folder(folder):
        return folder
    if folder.is_dir():
        refuse_lfs_pointers(folder)
        refuse_adapter_alone(folder)
    missing = next((name for name in ("config.json", "*.safetensors") if not any(folder.glob(name))), None)
    if missing:
        problem = f"it has no {missing}" if folder.is_dir() else "no such folder"
        raise RecipeError(f"{folder}: {problem}; a model folder in Hugging Face form is wanted, weights in safetensors")
    return folder

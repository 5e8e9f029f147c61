"""Loads the model and tokenizer of a stage as transformers objects."""

from pathlib import Path
from typing import Any

from qwen_align.align.api.results import Results, StageResult, read_stage
from qwen_align.align.api.run import Plan
from qwen_align.align.errors import RecipeError
from qwen_align.align.models.weight_check import refuse_adapter_alone, refuse_stray_adapter
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.stages.registry import STAGE_KINDS


def load_model(source: Results | Plan | StageResult | str | Path, stage: str | None = None) -> tuple[Any, Any]:
    """Loads a transformers model and its tokenizer from a stage result, a run or a model folder.

    Weights are on the CPU in the precision of the files, adapters merged, in evaluation mode.

    `source`: results or a plan of a run, or the run's folder (runs/NAME), with the `stage` whose model is wanted; or a
    finished stage, or the folder of a stage or of a model. Raises RecipeError where there is no such model, StageError
    where a merged adapter's logits are not the adapter's own.
    """
    folder = _find_model_folder(source, stage)
    from qwen_align.align.models import loading  # takes seconds
    from qwen_align.align.training.fit import load_padding_tokenizer

    return loading.load_model(folder).eval(), load_padding_tokenizer(folder)


def _find_model_folder(source: Results | Plan | StageResult | str | Path, stage: str | None) -> Path:
    if isinstance(source, StageResult):
        return _check_makes_model(source.folder)
    if isinstance(source, Results | Plan):
        folders = {finished.name: finished.folder for finished in _list_stages(source)}
        where = f"run '{source.name}'"
    elif stage is None:
        return _check_makes_model(Path(source))
    else:
        folders = {link.name: link for link in sorted(Path(source, "stages").glob("*"))}
        where = f"{source}"
    if stage is None:
        raise RecipeError(f"{where}: say which stage's model is wanted: {', '.join(folders)}")
    if stage not in folders:
        raise RecipeError(f"{where}: no stage is called '{stage}'{format_suggestion(stage, folders)}")
    return _check_makes_model(folders[stage])


def _list_stages(source: Results | Plan) -> list[Any]:
    return list(source.stages.values()) if isinstance(source, Results) else list(source.stages)


def _check_makes_model(folder: Path) -> Path:
    """Returns the folder if it holds a finished model. Raises RecipeError if it does not."""
    if (folder / "manifest.json").exists():
        kind = read_stage(folder.name, folder).kind
        if STAGE_KINDS[kind].product != "model":
            raise RecipeError(f"{folder}: a stage of kind {kind} makes no model")
        return folder
    if (folder / "stage.json").exists():
        raise RecipeError(f"{folder}: the stage has not finished; run it first")
    if not (folder / "config.json").exists():
        found = "holds no model (config.json)" if folder.is_dir() else "no such folder"
        raise RecipeError(f"{folder}: {found}; name a run's folder and a stage, or a stage's or a model's folder")
    refuse_adapter_alone(folder)
    refuse_stray_adapter(folder)
    return folder

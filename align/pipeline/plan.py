"""A recipe's stages in running order, each with its key, its folder and what it reads; nothing is run here."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import model_files
from qwen_align.align.pipeline import graph
from qwen_align.align.pipeline.graph import Graph, Stage
from qwen_align.align.references import Product
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.tokenizer_check import check_tokenizer_fits_model
from qwen_align.align.settings.base import did_you_mean
from qwen_align.align.settings.recipe import Recipe, StageSpec
from qwen_align.align.settings.recipe_file import Variant, load_variants
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.provenance import read_library_versions
from qwen_align.align.store.stage_folder import StageFolder
from qwen_align.align.store.store import Store


@dataclass(frozen=True)
class Planned:
    """A stage with its key and its folder; `inputs` is what the worker is told of each reference.

    `missing`: the file of rows that is not there yet; `check` can go on without it, a run cannot.
    """

    stage: Stage
    key: str
    folder: StageFolder
    inputs: dict[str, dict[str, str]]
    missing: str | None = None

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def kind(self) -> str:
        return self.stage.kind

    @property
    def settings(self) -> StageSpec:
        return self.stage.settings

    @property
    def seed(self) -> int:
        return self.stage.seed

    @property
    def runtime(self) -> Runtime:
        return self.stage.runtime

    @property
    def targets(self) -> dict[str, str]:
        """Reference -> name of the stage or model meant."""
        return self.stage.targets

    @property
    def product(self) -> Product:
        return STAGE_KINDS[self.kind].product

    @property
    def is_stored(self) -> bool:
        return self.folder.is_complete


@dataclass(frozen=True)
class Plan:
    """A recipe's stages in running order, ready to run."""

    recipe: Recipe
    graph: Graph
    stages: list[Planned]
    home: Path

    @property
    def run_folder(self) -> Path:
        return self.home / "runs" / self.recipe.name

    @property
    def tracking_folder(self) -> Path:
        """Where trackers keep their files and logs."""
        return self.run_folder / "tracking"

    @property
    def group(self) -> str:
        """What trackers file the run's stages under."""
        return self.recipe.tracking.group or self.recipe.name

    def named(self, name: str) -> list[Planned]:
        """The stages called so, in the plan or in the recipe; raises RecipeError when there is none."""
        found = [planned for planned in self.stages if name in (planned.stage.name, planned.stage.origin)]
        if not found:
            names = [planned.stage.name for planned in self.stages]
            raise RecipeError(f"no stage is called '{name}'{did_you_mean(name, names)}")
        return found


def plan(path: Path, home: Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> Plan:
    """Reads and binds the recipe and computes every key; nothing is written but the cache of file digests."""
    return plan_variants(load_variants(path, overrides, tiny=tiny), home, path)


def plan_variants(variants: Sequence[Variant], home: Path, path: Path) -> Plan:
    """Plans a recipe's variants as `plan` does; `path` opens the message of a RecipeError."""
    try:
        return _planned(variants, home)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _planned(variants: Sequence[Variant], home: Path) -> Plan:
    whole = graph.build(variants)
    stored = Store(home / "store")
    keys: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for name, source in whole.models.items():
        try:
            keys[name] = stored.compute_model_key(source)
            folders[name] = (
                Path(f"hub:{source.hub}@{source.revision}") if source.hub else model_files.find_model_folder(source)
            )
        except (RecipeError, OSError) as error:
            raise RecipeError(f"models: {name}: {error}") from None
    planned = []
    for stage in whole.stages:
        missing = stage.settings.missing_file()
        # A key that no stage has ever had: what reads rows that are not there is not stored either.
        key = (
            hashlib.sha256(f"missing: {missing}".encode()).hexdigest()
            if missing
            else stored.compute_key(stage, {ref: keys[target] for ref, target in stage.targets.items()})
        )
        folder = stored.get_folder(stage.kind, key)
        inputs = {
            ref: {"name": target, "folder": str(folders[target]), "key": keys[target]}
            for ref, target in stage.targets.items()
        }
        planned.append(Planned(stage, key, folder, inputs, missing))
        keys[stage.name], folders[stage.name] = key, folder.path.resolve()
    stored.save_file_digests()
    return Plan(variants[0].recipe, whole, planned, home)


def check_models(planned: Plan, again: Sequence[Planned] = ()) -> None:
    """Raises RecipeError when a stage to run cannot start: its local model has no tokenizer of its own or no template
    to train on, or its DeepSpeed file is missing.

    `again`: stored stages that will run again.
    """
    todo = [one for one in planned.stages if not one.is_stored or one in again]
    for one in todo:
        if (path := one.stage.runtime.deepspeed) and not Path(path).is_file():
            raise RecipeError(f"stage '{one.stage.origin}': runtime.deepspeed: {path}: no such file")
    read = {entry["name"]: Path(entry["folder"]) for one in todo for entry in one.inputs.values()}
    for name, folder in read.items():
        if name in planned.graph.models and not planned.graph.models[name].hub:
            try:
                if base := model_files.find_base(folder):
                    check_tokenizer_fits_model(base, Renderer.load(base))
            except ValueError as error:  # a RecipeError, or a tokenizer_config.json that is no JSON
                raise RecipeError(f"models: {name}: {error}") from None


def other_versions(one: Planned) -> list[str]:
    """The libraries whose major version is not the one that a stored stage was made with, as `trl 1.16 -> 2.0`."""
    made_with: Mapping[str, str] = one.folder.read_manifest()["libraries"]
    return [
        f"{name} {made_with[name]} -> {version}"
        for name, version in read_library_versions().items()
        if name in made_with and made_with[name].split(".")[0] != version.split(".")[0]
    ]

"""Plans a recipe without running it: its stages in running order with their keys, folders and inputs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import model_description
from qwen_align.align.pipeline import graph, machine_check
from qwen_align.align.pipeline.graph import Graph, Stage
from qwen_align.align.pipeline.hub_revisions import FoundRevision, RevisionFinder, get_record_path, pin_variants
from qwen_align.align.references import Product
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.tokenizer_check import check_tokenizer_fits_model
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.recipe import Recipe, StageSpec
from qwen_align.align.settings.recipe_file import Variant, apply_overrides, expand_variants, read_settings
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.store.outside_files import NO_OUTSIDE_FILES, OutsideFiles
from qwen_align.align.store.provenance import read_library_versions
from qwen_align.align.store.run_folders import RunRequest, build_request, find_run_folder
from qwen_align.align.store.stage_folder import StageFolder
from qwen_align.align.store.store import Store
from qwen_align.align.training.resume_rules import find_obstacle_at_door


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its key, folder and inputs.

    `inputs`: name, folder and key of each reference's target.

    `outside`: the digests of the user's files that the key was computed of.

    `missing`: the file of rows that is not there yet; `check` can go on without it, a run cannot.
    """

    stage: Stage
    key: str
    folder: StageFolder
    inputs: dict[str, dict[str, str]]
    missing: str | None = None
    outside: OutsideFiles = NO_OUTSIDE_FILES

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
    def origin(self) -> str:
        """Returns the stage's name in the recipe."""
        return self.stage.origin

    @property
    def axes(self) -> dict[str, str]:
        """Returns the stage's matrix cell and repeat round, as {axis: label}."""
        return self.stage.axes

    @property
    def seed(self) -> int:
        return self.stage.seed

    @property
    def runtime(self) -> Runtime:
        return self.stage.runtime

    @property
    def targets(self) -> dict[str, str]:
        """Returns the name of the stage or model that each reference resolves to."""
        return self.stage.targets

    @property
    def product(self) -> Product:
        return STAGE_KINDS[self.kind].product

    @property
    def is_stored(self) -> bool:
        """Returns whether the stage has a complete result in the store."""
        return self.folder.is_complete


@dataclass(frozen=True)
class Plan:
    """A plan of a recipe: its stages in running order, ready to run.

    `request`: the recipe file and the changes to it. `known_folder`: that of the run whose plan it is, where known.
    `revisions`: the commits found for branches and tags of the hub, which `recipe` and `stages` have in their place.
    """

    recipe: Recipe
    graph: Graph
    stages: list[PlannedStage]
    home: Path
    request: RunRequest
    known_folder: Path | None = None
    revisions: tuple[FoundRevision, ...] = ()

    @property
    def stage_folders(self) -> dict[str, Path]:
        """Returns the folder of each stage."""
        return {stage.name: stage.folder.path for stage in self.stages}

    @property
    def run_folder(self) -> Path:
        """Returns the folder of the run: runs/NAME, or another where that belongs to another run."""
        return self.known_folder or find_run_folder(self.home, self.recipe.name, self.request, self.stage_folders)

    @property
    def tracking_folder(self) -> Path:
        """Returns the folder where experiment trackers keep their files and logs."""
        return self.run_folder / "tracking"

    @property
    def group(self) -> str:
        """Returns the name of the group under which experiment trackers file the run's stages."""
        return self.recipe.tracking.group or self.recipe.name

    def find_stages(self, name: str) -> list[PlannedStage]:
        """Returns the planned stages with a given name in the plan or in the recipe.

        Raises RecipeError when there is none.
        """
        stages = [stage for stage in self.stages if name in (stage.name, stage.origin)]
        if not stages:
            names = [stage.name for stage in self.stages]
            raise RecipeError(f"no stage is called '{name}'{format_suggestion(name, names)}")
        return stages


def plan(path: Path, home: Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> Plan:
    """Reads a recipe, sorts its stages and computes their keys.

    Nothing is written but the cache of file digests, and folders of models with YaRN.
    """
    settings = read_settings(path, tiny=tiny)
    request = build_request(path, settings, overrides, tiny=tiny)
    apply_overrides(settings, overrides)
    return plan_variants(expand_variants(settings, path), home, path, request)


def plan_variants(variants: Sequence[Variant], home: Path, path: Path, request: RunRequest) -> Plan:
    """Plans the variants of a recipe as `plan` does. `path` opens the message of a RecipeError."""
    finder = RevisionFinder(get_record_path(home, variants[0].recipe.name))
    try:
        planned = _plan_stages(pin_variants(variants, finder), home, request)
        return replace(planned, revisions=tuple(finder.found.values()))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _plan_stages(variants: Sequence[Variant], home: Path, request: RunRequest) -> Plan:
    """Computes the key, folder and inputs of every stage of the recipe variants.

    Raises RecipeError for settings that do not fit together.
    """
    stage_graph = graph.build_graph(variants)
    store = Store(home / "store")
    keys: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for name, source in stage_graph.models.items():
        try:
            keys[name] = store.compute_model_key(source)
            folders[name] = store.find_model_folder(source)
        except (RecipeError, OSError) as error:
            raise RecipeError(f"models: {name}: {error}") from None
    planned_stages = []
    for stage in stage_graph.stages:
        missing = stage.settings.find_missing_file()
        # A key that no stage has ever had: what reads rows that are not there is not stored either.
        key = (
            hashlib.sha256(f"missing: {missing}".encode()).hexdigest()
            if missing
            else store.compute_key(stage, {ref: keys[target] for ref, target in stage.targets.items()})
        )
        folder = store.get_folder(stage.kind, key)
        inputs = {
            ref: {"name": target, "folder": str(folders[target]), "key": keys[target]}
            for ref, target in stage.targets.items()
        }
        model_folders = [
            folders[target]
            for target in dict.fromkeys(stage.targets.values())
            if target in stage_graph.models
            and not stage_graph.models[target].hub
            and not model_description.is_stage_folder(folders[target])
        ]
        outside = NO_OUTSIDE_FILES if missing else store.digest_outside_files(stage, model_folders)
        planned_stages.append(PlannedStage(stage, key, folder, inputs, missing, outside))
        keys[stage.name], folders[stage.name] = key, folder.path.resolve()
    store.save_file_digests()
    return Plan(variants[0].recipe, stage_graph, planned_stages, home, request)


def check_can_start(
    plan: Plan,
    forced: Sequence[PlannedStage] = (),
    *,
    load_renderer: Callable[[Path], Renderer] = Renderer.load,
) -> None:
    """Raises RecipeError when a stage that is to run cannot start, and StageError when the home cannot be written.

    Its local model has no tokenizer of its own or no template to train on, or this machine has not
    what it asks for. `forced`: stored stages that will run again.
    """
    machine_check.check_home(plan.home)
    stages_to_run = [stage for stage in plan.stages if not stage.is_stored or stage in forced]
    for stage in stages_to_run:
        try:
            machine_check.check_machine(stage.stage)
            if stage not in forced:
                _check_checkpoints(stage)
        except RecipeError as error:
            raise RecipeError(f"stage '{stage.origin}': {error}") from None
    read_folders = {entry["name"]: Path(entry["folder"]) for stage in stages_to_run for entry in stage.inputs.values()}
    for name, folder in read_folders.items():
        if name in plan.graph.models and not plan.graph.models[name].hub:
            try:
                if base := model_description.find_base_folder(folder):
                    check_tokenizer_fits_model(base, load_renderer(base))
            except ValueError as error:  # a RecipeError, or a tokenizer_config.json that is no JSON
                raise RecipeError(f"models: {name}: {error}") from None


def _check_checkpoints(stage: PlannedStage) -> None:
    """Raises RecipeError where a stage has a checkpoint that it cannot go on from as it would run."""
    home = stage.folder.path / "checkpoints"
    n_processes = machine_check.count_processes(stage.stage) * machine_check.count_nodes(stage.stage)
    if obstacle := find_obstacle_at_door(home, stage.runtime, n_processes):
        raise RecipeError(f"{obstacle} {stage.origin}")


def list_version_changes(stage: PlannedStage) -> list[str]:
    """Lists the libraries whose major version has changed since a stage was stored, as `trl 1.16 -> 2.0`."""
    made_with: Mapping[str, str] = stage.folder.read_manifest().get("libraries", {})
    return [
        f"{name} {made_with[name]} -> {version}"
        for name, version in read_library_versions().items()
        if name in made_with and str(made_with[name]).split(".")[0] != version.split(".")[0]
    ]

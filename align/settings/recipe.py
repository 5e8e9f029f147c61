"""Defines the recipe, the file a user writes, as typed settings."""

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from qwen_align.align.references import OutsideFile
from qwen_align.align.settings.base import Strict, format_suggestion
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.hub_revision import WHERE_COMMITS_STAND, HubRepository, HubRevision
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.rollout import Rollout
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.settings.yarn import Yarn

# One member for each kind of align/stages/registry.py, written out for type checkers.
StageSpec = BuildData | Pretrain | Rollout | Sft | Dpo | RewardModel | Grpo | Ppo | Evaluate
AnyStage = Annotated[StageSpec, Field(discriminator="kind")]


def list_stage_settings(kind: Any) -> list[str]:
    """Returns the names of the settings of a kind of stage. The list is empty for an unknown kind."""
    classes = [member for member in get_args(StageSpec) if kind in get_args(member.model_fields["kind"].annotation)]
    return [name for member in classes for name in member.model_fields]


class ModelSource(Strict):
    """A model that no stage makes: exactly one of a shipped model, a folder, or a hub id with its revision."""

    shipped: Literal["tiny_base"] | None = Field(None, description="a model that comes with the package")
    path: OutsideFile | None = Field(
        None, description="folder with a model in Hugging Face form, or of a finished stage that made a model"
    )
    hub: str | None = Field(None, description="model id on the Hugging Face hub, such as Qwen/Qwen3-0.6B")
    revision: HubRevision | None = Field(
        None,
        description="commit of the hub model, 40 hex digits (on its page: Files and versions, History), or a branch or "
        "tag, whose commit the run finds once and keeps",
    )
    is_scorer: bool = Field(False, description="it is a reward model: a sequence classifier with one output")
    adapter: Literal["ignore"] | None = Field(
        None,
        description="ignore = take the model without the LoRA adapter that lies beside it; without this, such a folder "
        "is refused",
    )
    yarn: Yarn | None = Field(
        None,
        description="read texts longer than the model was pretrained for; every stage that starts from this model, and "
        "what it hands on, has the scaling in its config.json. null = as config.json says",
    )

    @classmethod
    def _suggest_settings(cls, found: Any) -> str:
        """Returns what to write in place of a bare name of a model."""
        if not isinstance(found, str):
            return ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", found):
            return f"; a model of the hub is {{hub: {found}, revision: main}}, a folder is {{path: {found}}}"
        return f"; a folder is {{path: {found}}}, a model of the hub {{hub: OWNER/NAME, revision: main}}"

    @model_validator(mode="after")
    def _check_single_source(self) -> "ModelSource":
        """Checks that a model has exactly one source. Raises ValueError otherwise."""
        given = [name for name in ("shipped", "path", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of shipped, path, hub; found {', '.join(given) or 'none'}")
        if self.hub and not self.revision:
            raise ValueError(
                f"revision is missing: the commit of the hub model, 40 hex digits ({WHERE_COMMITS_STAND}), or "
                "`revision: main`, whose commit the run finds once and keeps"
            )
        if self.revision and not self.hub:
            raise ValueError("revision: is for a model of the hub; leave it out")
        return self

    @property
    def hub_repository(self) -> HubRepository | None:
        """Returns the model's repository on the hub. Returns None for other models."""
        return HubRepository("model", self.hub) if self.hub else None


class Repeat(Strict):
    """A block of stages run several times, each round on the results of the round before."""

    times: int = Field(ge=1, le=1000, description="number of rounds")
    carry: dict[str, str] = Field(
        default_factory=dict,
        description="model or data set -> stage of this block: in later rounds the name means what that stage made the "
        "round before",
    )
    stages: list[AnyStage] = Field(min_length=1, description="stages of a round")


class RepeatBlock(Strict):
    """An entry of `stages` that is a block of repeated stages."""

    repeat: Repeat = Field(description="the stages and how often they run")


class Report(Strict):
    """Settings of the report. They are no part of any key."""

    title: str = Field("", description="title of the report; empty = the recipe's name")
    controls: list[str] = Field(
        default_factory=list, description="evaluated models that are controls, shown apart from the ladder"
    )
    compare: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        default_factory=list, description="pairs of evaluated models to compare, besides each model with the one before"
    )


def _get_item_shape(item: Any) -> str | None:
    """Returns whether an entry of `stages` is a `stage` or a `repeat` block. Returns None for anything else."""
    if isinstance(item, RepeatBlock) or (isinstance(item, Mapping) and "repeat" in item):
        return "repeat"
    return "stage" if isinstance(item, Mapping | Strict) else None


Item = Annotated[
    Annotated[AnyStage, Tag("stage")] | Annotated[RepeatBlock, Tag("repeat")], Discriminator(_get_item_shape)
]


class Recipe(Strict):
    """A recipe: models and the stages that train, sample and evaluate them.

    Stages run in the order of their references.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="name of the recipe and of its run's folder")
    seed: int = Field(0, description="seed of every stage that has none of its own")
    models: dict[str, ModelSource] = Field(default_factory=dict, description="name -> model that no stage makes")
    runtime: Runtime = Field(Runtime(), description="how stages are run, unless they say otherwise")
    matrix: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="dotted setting -> the values to try; every combination is run"
    )
    tiny: dict[str, Any] = Field(
        default_factory=dict,
        exclude=True,
        description="dotted setting -> its value under --tiny, which tries the recipe out in a small form",
    )
    extends: str | None = Field(
        None,
        exclude=True,
        description="file of a recipe in the same folder, whose settings and stages come before these",
    )
    change: dict[str, Any] = Field(
        default_factory=dict,
        exclude=True,
        description="dotted setting of the recipe that is extended -> its value here",
    )
    anchors: dict[str, Any] = Field(
        default_factory=dict, exclude=True, description="a place for YAML anchors; nothing reads it"
    )
    stages: list[Item] = Field(min_length=1, description="what is run: stages, and blocks of repeated stages")
    report: Report = Field(Report(), description="what the report shows")
    tracking: Tracking = Field(Tracking(), description="experiment trackers that get the training curves")

    @classmethod
    def _explain_unknown_key(cls, key: str) -> str:
        """Returns what to write instead of a key that recipes do not have, such as a setting of a stage."""
        if any(key in member.model_fields for member in get_args(StageSpec)):
            return f"'{key}' is a setting of stages, not of the recipe: it stands in an entry of `stages`"
        return super()._explain_unknown_key(key)

    @model_validator(mode="after")
    def _check_report_names(self) -> "Recipe":
        """Checks that the report settings name existing models and stages. Raises ValueError otherwise."""
        inside = [stage for item in self.stages if isinstance(item, RepeatBlock) for stage in item.repeat.stages]
        stages = [item for item in self.stages if not isinstance(item, RepeatBlock)]
        names = [*self.models, *(stage.name for stage in [*stages, *inside])]
        for setting, said in (("controls", self.report.controls), ("compare", itertools.chain(*self.report.compare))):
            for name in said:
                if name not in names and not any(name.startswith(f"{stage.name}.") for stage in inside):
                    raise ValueError(
                        f"report.{setting}: no model or stage is called '{name}'{format_suggestion(name, names)}"
                    )
        return self

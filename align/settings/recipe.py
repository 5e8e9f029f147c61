"""A recipe: the file a user writes, checked and read into typed settings."""

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import OutsideFile, Product
from qwen_align.align.settings.base import Strict, did_you_mean
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.rollout import Rollout
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.stage import Runtime
from qwen_align.align.settings.tracking import Tracking

StageSpec = BuildData | Pretrain | Rollout | Sft | Dpo | RewardModel | Grpo | Ppo | Evaluate
AnyStage = Annotated[StageSpec, Field(discriminator="kind")]

PRODUCTS: dict[str, Product] = {
    "build_data": "data",
    "pretrain": "model",
    "rollout": "data",
    "sft": "model",
    "dpo": "model",
    "reward_model": "scorer",
    "grpo": "model",
    "ppo": "model",
    "evaluate": "evaluation",
}


TINY_SUFFIX = "_tiny"  # of the run's name, so that its folder is not that of the whole


class ModelSource(Strict):
    """A model from outside: exactly one of a shipped one, a folder, or a hub id with its commit."""

    shipped: Literal["tiny_base"] | None = None
    path: OutsideFile | None = Field(None, description="folder in Hugging Face form, relative to the recipe")
    hub: str | None = None
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$", description="the hub commit, 40 hex digits")
    is_scorer: bool = Field(False, description="a sequence classifier with one output, for learned rewards")

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSource":
        given = [name for name in ("shipped", "path", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of shipped, path, hub; found {', '.join(given) or 'none'}")
        if bool(self.hub) != bool(self.revision):
            raise ValueError("hub and revision go together: a hub model is pinned by its commit (40 hex digits)")
        return self


class Repeat(Strict):
    """The stages `times` over; in later rounds a name in `carry` means what its stage made the round before."""

    times: int = Field(ge=1)
    carry: dict[str, str] = Field(default_factory=dict)
    stages: list[AnyStage] = Field(min_length=1)


class RepeatBlock(Strict):
    repeat: Repeat


class Report(Strict):
    """How the report names things; no part of any key."""

    title: str = ""
    controls: list[str] = Field(default_factory=list, description="evaluated models that are no rung of the ladder")
    compare: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        default_factory=list, description="pairs of evaluated models, besides each with the rung below it"
    )


def _kind(item: Any) -> str | None:
    if isinstance(item, RepeatBlock) or (isinstance(item, Mapping) and "repeat" in item):
        return "repeat"
    return item.get("kind") if isinstance(item, Mapping) else getattr(item, "kind", None)


Item = Annotated[
    Annotated[BuildData, Tag("build_data")]
    | Annotated[Pretrain, Tag("pretrain")]
    | Annotated[Rollout, Tag("rollout")]
    | Annotated[Sft, Tag("sft")]
    | Annotated[Dpo, Tag("dpo")]
    | Annotated[RewardModel, Tag("reward_model")]
    | Annotated[Grpo, Tag("grpo")]
    | Annotated[Ppo, Tag("ppo")]
    | Annotated[Evaluate, Tag("evaluate")]
    | Annotated[RepeatBlock, Tag("repeat")],
    Discriminator(_kind),
]


class Recipe(Strict):
    """Named models and stages; order comes from references, not from position."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    seed: int = 0
    models: dict[str, ModelSource] = Field(default_factory=dict)
    runtime: Runtime = Runtime()
    matrix: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="dotted setting -> the values to try"
    )
    tiny: dict[str, Any] = Field(
        default_factory=dict, exclude=True, description="dotted setting -> its value under --tiny, a form to try out"
    )
    extends: str | None = Field(
        None, exclude=True, description="a recipe beside this one, whose settings and stages come before these"
    )
    change: dict[str, Any] = Field(
        default_factory=dict,
        exclude=True,
        description="dotted setting of the recipe that is extended -> its value here",
    )
    anchors: dict[str, Any] = Field(default_factory=dict, exclude=True, description="a place for YAML anchors")
    stages: list[Item] = Field(min_length=1)
    report: Report = Report()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _report_names_what_there_is(self) -> "Recipe":
        inside = [stage for item in self.stages if isinstance(item, RepeatBlock) for stage in item.repeat.stages]
        stages = [item for item in self.stages if not isinstance(item, RepeatBlock)]
        names = [*self.models, *(stage.name for stage in [*stages, *inside])]
        for setting, said in (("controls", self.report.controls), ("compare", itertools.chain(*self.report.compare))):
            for name in said:
                if name not in names and not any(name.startswith(f"{stage.name}.") for stage in inside):
                    raise ValueError(
                        f"report.{setting}: no model or stage is called '{name}'{did_you_mean(name, names)}"
                    )
        return self


class Variant(NamedTuple):
    """One cell of the matrix: the recipe with its values set, and what they are by setting."""

    axes: dict[str, str]
    recipe: Recipe


def load(path: Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> list[Variant]:
    """The recipe's variants (one without a matrix); `overrides` are `dotted.setting=value` in YAML.

    `tiny` takes the values of the recipe's `tiny` section first, and names the run so. Raises RecipeError.
    """
    raw = read(path, overrides, tiny=tiny)
    whole = _validate(raw, path)
    return [
        Variant(axes, _validate(cell, path)) if axes else Variant(axes, whole)
        for axes, cell in _cells(raw, whole.matrix, path)
    ]


def read(path: Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> dict[str, Any]:
    """The file's settings with the overrides set, not yet validated; raises RecipeError."""
    raw = _extended(_read(path), path)
    if tiny:
        _make_tiny(raw, path)
    for (setting, value), override in zip(assignments(overrides), overrides, strict=True):
        _set(raw, setting, value, where=f"--set {override}")
    return raw


def _extended(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings on top of those of the recipe that they extend; stages come behind its stages."""
    if "extends" not in raw:
        if "change" in raw:
            raise RecipeError(f"{path}: change: changes the recipe that this one extends; there is no `extends`")
        return raw
    name = raw.pop("extends")
    if not isinstance(name, str) or Path(name).name != name or name == path.name:
        raise RecipeError(f"{path}: extends: must be the name of another recipe in the same folder; found {name!r}")
    if "name" not in raw:
        raise RecipeError(f"{path}: name: is missing; with that of {name} their runs would share a folder")
    base = _extended(_read(path.parent / name), path.parent / name)
    for setting, value in _mapping(raw.pop("change", {}), f"{path}: change").items():
        _set(base, str(setting), copy.deepcopy(value), where=f"{path}: change")
    for group in ("models", "runtime"):
        if group in base and group in raw:
            raw[group] = _mapping(base[group], f"{name}: {group}") | _mapping(raw[group], f"{path}: {group}")
    more = raw.get("stages", [])
    if not isinstance(more, list) or not isinstance(base.get("stages"), list):
        return base | raw  # validation says what is wrong
    return base | raw | {"stages": base["stages"] + more}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: must be a mapping; found {value!r}")
    return value


def _make_tiny(raw: dict[str, Any], path: Path) -> None:
    found = raw.get("tiny")
    if not isinstance(found, dict) or not found:
        raise RecipeError(f"{path}: has no tiny form: a section `tiny` would map dotted settings to their values")
    for setting, value in found.items():
        _set(raw, str(setting), copy.deepcopy(value), where=f"{path}: tiny")
    if isinstance(raw.get("name"), str):
        raw["name"] += TINY_SUFFIX


def assignments(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """(setting, value) of every `setting=value`, the value read as YAML; raises RecipeError."""
    found = []
    for override in overrides:
        setting, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(f"--set {override}: write it as setting=value, as in stages.sft.learning_rate=1e-5")
        found.append((setting, _yaml(value, where=f"--set {override}")))
    return found


def _cells(raw: dict[str, Any], matrix: Mapping[str, list[Any]], path: Path) -> Iterator[tuple[dict[str, str], Any]]:
    where = f"{path}: matrix"
    tries = [
        [(setting, label, value) for label, value in zip(_labels(setting, values, where), values, strict=True)]
        for setting, values in matrix.items()
    ]
    short = [setting.rpartition(".")[2] for setting in matrix]
    for choice in itertools.product(*tries):
        cell = copy.deepcopy(raw)
        axes = {}
        for setting, label, value in choice:
            _set(cell, "models.base" if setting == "base" else setting, copy.deepcopy(value), where=where)
            last = setting.rpartition(".")[2]
            axes[last if short.count(last) == 1 else setting] = label
        yield axes, cell


def _labels(setting: str, values: list[Any], where: str) -> list[str]:
    """What each value is called in stage names: itself if it is short and plain, else its number."""
    labels = []
    for index, value in enumerate(values):
        is_plain = isinstance(value, str | int | float) and re.fullmatch(r"[\w.-]+", str(value))
        label = str(value) if is_plain else str(index)
        if label in labels:
            raise RecipeError(f"{where}: {setting}: two values are called '{label}'; each may stand there once")
        labels.append(label)
    return labels


def _set(raw: dict[str, Any], setting: str, value: Any, *, where: str) -> None:
    *path, last = setting.split(".")
    place: Any = raw
    for depth, part in enumerate(path):
        here = ".".join(path[: depth + 1])
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, list):
            place = _named(place, part, where=where, here=here)
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            raise RecipeError(f"{where}: '{here}' is no group of settings")
    if not isinstance(place, dict):
        raise RecipeError(f"{where}: '{setting}' names no setting")
    place[last] = value


def _named(items: list[Any], name: str, *, where: str, here: str) -> Any:
    stages: list[Any] = []
    for item in items:
        inner = item.get("repeat") if isinstance(item, dict) else None
        stages += inner.get("stages") or [] if isinstance(inner, dict) else [item]
    names = [str(stage.get("name")) for stage in stages if isinstance(stage, dict)]
    if name not in names:
        raise RecipeError(f"{where}: '{here}': no stage is called '{name}'{did_you_mean(name, names)}")
    return stages[names.index(name)]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers (1e-6 is a number) and without duplicate keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"'{key.value}' is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _yaml(text: str, *, where: str) -> Any:
    try:
        return _unshared(yaml.load(text, _Loader))  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        context = f"{error.context}: " if error.context else ""
        raise RecipeError(f"{where}{line}: not a recipe in YAML: {context}{error.problem}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML: {error}") from None
    except RecursionError:
        raise RecipeError(f"{where}: an alias (*name) stands inside what it means, or lists nest too deep") from None


def _unshared(value: Any) -> Any:
    """The value with every alias a copy of its own: `--set` changes one stage, not all that share an anchor."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `qwen-align recipes` lists the shipped ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    raw = _yaml(text, where=str(path))
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with name and stages; found {type(raw).__name__}")
    return raw


def _validate(raw: dict[str, Any], path: Path) -> Recipe:
    try:
        return Recipe.model_validate(raw, context={"folder": str(path.parent)})
    except ValidationError as error:
        raise explained(error, raw, path) from None


def explained(error: ValidationError, raw: dict[str, Any], path: Path) -> RecipeError:
    """What is wrong with the settings in a file, by the places in it."""
    details = error.errors(include_url=False)
    said = "\n".join(f"{path}: {_explain(detail, raw)}" for detail in details[:5])
    return RecipeError(said + (f"\n... and {len(details) - 5} more" if len(details) > 5 else ""))


def _explain(detail: Mapping[str, Any], raw: dict[str, Any]) -> str:
    where, field = "", ""
    here: Any = raw
    for depth, part in enumerate(detail["loc"], start=1):
        is_absent = detail["type"] == "missing" and depth == len(detail["loc"])
        if not is_absent and not _holds(here, part):
            continue  # no setting, but pydantic's name for a member of a union
        here = None if is_absent else here[part]
        field += f"[{part}]" if isinstance(part, int) else f".{part}"
        if field in (f".stages[{part}]", f".repeat.stages[{part}]"):
            name = here.get("name") if isinstance(here, dict) else None
            where, field = f"stage '{name}': " if name else f"{where}{field[1:]}: ", ""
    return f"{where}{field[1:] + ': ' if field else ''}{_said(detail)}"


def _holds(value: Any, part: Any) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _said(detail: Mapping[str, Any]) -> str:
    if detail["type"] == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", str(detail["ctx"]["expected_tags"]))
        return f"kind '{detail['ctx']['tag']}' is unknown{did_you_mean(str(detail['ctx']['tag']), known)}"
    if detail["type"] == "union_tag_not_found":
        return "'kind' is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] in ("missing", "unknown_key", "value_error"):
        return message
    found = repr(detail["input"])
    return f"{message}; found {found if len(found) < 80 else found[:77] + '...'}"

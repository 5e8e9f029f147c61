"""Reads a recipe from its file: YAML, `extends`, `--set`, the tiny form, and the cells of the matrix."""

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.fault_wording import find_near_word
from qwen_align.align.settings.recipe import Recipe, RepeatBlock, list_stage_settings
from qwen_align.align.settings.recipe_errors import explain_error

MAX_VALUES = 100_000  # in a recipe file; the longest shipped recipe has 500
MAX_STAGES = 10_000  # in a plan; matrix cells times repeats times stages grow quickly
# What the cells of a matrix share: the run's folder, its report and trackers, and how the file itself is read.
NOT_IN_MATRIX = ("name", "extends", "change", "tiny", "matrix", "anchors", "report", "tracking")
TINY_SUFFIX = "_tiny"  # of the run's name, so that its folder is not that of the full recipe


class Variant(NamedTuple):
    """A recipe with the settings of one matrix cell, and the cell's label of each setting."""

    axes: dict[str, str]
    recipe: Recipe


def load_variants(path: Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> list[Variant]:
    """Reads the variants of a recipe file, one for each cell of its matrix (one without a matrix).

    `overrides` are `dotted.setting=value` in YAML. `tiny` takes the values of the recipe's `tiny` section first, and
    names the run so. Raises RecipeError.
    """
    return expand_variants(read_settings(path, overrides, tiny=tiny), path)


def expand_variants(raw: dict[str, Any], path: Path) -> list[Variant]:
    """Validates a recipe's settings and returns its variants, one for each matrix cell (one without a matrix).

    `path`: opens error messages, and relative paths start at its folder. Raises RecipeError.
    """
    recipe = _validate_recipe(raw, path)
    _check_number_of_stages(recipe, path)
    return [
        Variant(axes, _validate_recipe(cell, path)) if axes else Variant(axes, recipe)
        for axes, cell in _expand_matrix(raw, recipe.matrix, path)
    ]


def _check_number_of_stages(recipe: Recipe, path: Path) -> None:
    """Raises RecipeError if a recipe's matrix and repeats multiply to more stages than a plan can have."""
    n_cells = math.prod(len(values) for values in recipe.matrix.values())
    n_stages = sum(
        item.repeat.times * len(item.repeat.stages) if isinstance(item, RepeatBlock) else 1 for item in recipe.stages
    )
    if n_cells * n_stages > MAX_STAGES:
        raise RecipeError(
            f"{path}: {n_cells:,} cells of the matrix with {n_stages:,} stages each (repeats counted) make "
            f"{n_cells * n_stages:,} stages; at most {MAX_STAGES:,} are run"
        )


def read_settings(path: Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> dict[str, Any]:
    """Reads a recipe file's settings and applies the overrides, without validation.

    Raises RecipeError for a file that cannot be read.
    """
    raw = complete_settings(_read_file(path), path, tiny=tiny)
    apply_overrides(raw, overrides)
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets each `dotted.setting=value` in a recipe's raw settings. Raises RecipeError for one that cannot be set."""
    for (setting, value), override in zip(parse_overrides(overrides), overrides, strict=True):
        set_value(raw, setting, value, where=_format_override(override))


def complete_settings(raw: dict[str, Any], path: Path, *, tiny: bool = False) -> dict[str, Any]:
    """Merges a recipe's settings with those of the recipe it extends, in their tiny form if asked.

    Raises RecipeError for a wrong `extends`.

    `raw` is changed. `path`: opens error messages; the recipe that is extended lies in its folder.
    """
    raw = _resolve_extends(raw, path)
    if tiny:
        _apply_tiny_form(raw, path)
    return raw


def _resolve_extends(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Merges a recipe's settings with those of the recipe it extends.

    Its stages come after the extended recipe's stages.
    """
    if "extends" not in raw:
        if "change" in raw:
            raise RecipeError(f"{path}: change: changes the recipe that this one extends; there is no `extends`")
        return raw
    name = raw.pop("extends")
    if not isinstance(name, str) or Path(name).name != name or name == path.name:
        raise RecipeError(f"{path}: extends: must be the name of another recipe in the same folder; found {name!r}")
    if "name" not in raw:
        raise RecipeError(f"{path}: name: is missing; with that of {name} their runs would share a folder")
    base = _resolve_extends(_read_file(path.parent / name), path.parent / name)
    for setting, value in _require_mapping(raw.pop("change", {}), f"{path}: change").items():
        set_value(base, str(setting), copy.deepcopy(value), where=f"{path}: change")
    for group in ("models", "runtime"):
        if group in base and group in raw:
            raw[group] = _require_mapping(base[group], f"{name}: {group}") | _require_mapping(
                raw[group], f"{path}: {group}"
            )
    new_stages = raw.get("stages", [])
    if not isinstance(new_stages, list) or not isinstance(base.get("stages"), list):
        return base | raw  # validation says what is wrong
    return base | raw | {"stages": base["stages"] + new_stages}


def list_recipe_files(path: Path) -> list[Path]:
    """Lists a recipe file and the files of the recipes that it extends, nearest first."""
    extended = _read_file(path).get("extends")
    return [path, *(list_recipe_files(path.parent / extended) if extended else [])]


def _require_mapping(value: Any, where: str) -> dict[str, Any]:
    """Returns the value if it is a mapping. Raises RecipeError otherwise."""
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: must be a mapping; found {value!r}")
    return value


def _apply_tiny_form(raw: dict[str, Any], path: Path) -> None:
    """Applies the values of a recipe's `tiny` section to its settings and marks the run's name.

    Raises RecipeError if there is no such section.
    """
    tiny_settings = raw.get("tiny")
    if not isinstance(tiny_settings, dict) or not tiny_settings:
        raise RecipeError(f"{path}: has no tiny form: a section `tiny` would map dotted settings to their values")
    for setting, value in tiny_settings.items():
        set_value(raw, str(setting), copy.deepcopy(value), where=f"{path}: tiny")
    if isinstance(raw.get("name"), str):
        raw["name"] += TINY_SUFFIX


def parse_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Parses each `setting=value` text to (setting, value), with the value as YAML.

    Raises RecipeError for a text of another form.
    """
    parsed = []
    for override in overrides:
        setting, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(
                f"{_format_override(override)}: write it as setting=value, as in stages.sft.learning_rate=1e-5"
            )
        parsed.append((setting, parse_yaml(value, where=_format_override(override))))
    return parsed


def _format_override(override: str) -> str:
    """Returns an override as error messages begin with it, cut where it is long."""
    return f"--set {override if len(override) <= 80 else override[:77] + '...'}"


def _expand_matrix(
    raw: dict[str, Any], matrix: Mapping[str, list[Any]], path: Path
) -> Iterator[tuple[dict[str, str], Any]]:
    """Yields (axes, settings) for every cell of a recipe's matrix."""
    where = f"{path}: matrix"
    for setting in matrix:
        if setting.split(".")[0] in NOT_IN_MATRIX:
            raise RecipeError(f"{where}: {setting}: the cells share one run, in which it is the same; vary another")
    axis_choices = [
        [(setting, label, value) for label, value in zip(_label_values(setting, values, where), values, strict=True)]
        for setting, values in matrix.items()
    ]
    setting_names = [setting.rpartition(".")[2] for setting in matrix]
    for choice in itertools.product(*axis_choices):
        cell = copy.deepcopy(raw)
        axes = {}
        for setting, label, value in choice:
            set_value(cell, "models.base" if setting == "base" else setting, copy.deepcopy(value), where=where)
            name = setting.rpartition(".")[2]
            axes[name if setting_names.count(name) == 1 else setting] = label
        yield axes, cell


def _label_values(setting: str, values: list[Any], where: str) -> list[str]:
    """Returns the label of each matrix value for stage names.

    It is the value itself if it is short and plain, else its number.
    """
    labels = []
    for index, value in enumerate(values):
        is_plain = isinstance(value, str | int | float) and re.fullmatch(r"[\w.-]+", str(value))
        label = str(value) if is_plain else str(index)
        if label in labels:
            raise RecipeError(f"{where}: {setting}: two values are called '{label}'; each may stand there once")
        labels.append(label)
    return labels


def set_value(raw: dict[str, Any], setting: str, value: Any, *, where: str) -> None:
    """Sets the value of a dotted setting in a recipe's raw settings.

    A stage goes by its name. `where` opens the message of a RecipeError.
    """
    *path, name = setting.split(".")
    _refuse_misplaced_setting(raw, setting, where=where)
    group: Any = raw
    for depth, part in enumerate(path):
        reached = ".".join(path[: depth + 1])
        if isinstance(group, list) and part.isdecimal() and int(part) < len(group):
            group = group[int(part)]
        elif isinstance(group, list):
            group = _find_stage(group, part, where=where, reached=reached)
        elif isinstance(group, dict):
            group = group.setdefault(part, {})
        else:
            raise RecipeError(f"{where}: '{reached}' is no group of settings")
    if not isinstance(group, dict):
        raise RecipeError(f"{where}: '{setting}' names no setting")
    group[name] = value


def _refuse_misplaced_setting(raw: dict[str, Any], setting: str, *, where: str) -> None:
    """Raises RecipeError for a dotted setting of a stage or model that does not begin with `stages` or `models`.

    Also for a bare setting that stages have, with the stages it could be meant for.
    """
    first, _, rest = setting.partition(".")
    if not isinstance(raw.get("stages"), list) or first in raw or first in Recipe.model_fields:
        return
    stages = [stage for stage in _list_raw_stages(raw["stages"]) if isinstance(stage, dict)]
    models = raw.get("models")
    names = [str(stage.get("name")) for stage in stages]
    if rest and (near := find_near_word(first, names)):
        meant = [f"stages.{near}.{rest}"]
    elif isinstance(models, dict) and first in models:
        meant = [f"models.{setting}"]
    else:
        having = [stage for stage in stages if first in list_stage_settings(stage.get("kind"))]
        meant = [f"stages.{stage.get('name')}.{setting}" for stage in having]
    if meant:
        raise RecipeError(f"{where}: '{setting}' is no setting of the recipe; write {', or '.join(meant)}")


def _find_stage(items: list[Any], name: str, *, where: str, reached: str) -> Any:
    """Returns the raw settings of the stage with a given name, also inside repeat blocks.

    Raises RecipeError if there is none.
    """
    stages = _list_raw_stages(items)
    names = [str(stage.get("name")) for stage in stages if isinstance(stage, dict)]
    if name not in names:
        raise RecipeError(f"{where}: '{reached}': no stage is called '{name}'{format_suggestion(name, names)}")
    return stages[names.index(name)]


def _list_raw_stages(items: list[Any]) -> list[Any]:
    """Returns the raw settings of all stages, those inside repeat blocks included."""
    stages: list[Any] = []
    for item in items:
        inner = item.get("repeat") if isinstance(item, dict) else None
        stages += inner.get("stages") or [] if isinstance(inner, dict) else [item]
    return stages


class RecipeLoader(yaml.SafeLoader):
    """A YAML SafeLoader with YAML 1.2's numbers (1e-6 is a number) and without duplicate keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merges the mappings of `<<` into a node. Raises MarkedYAMLError if they multiply to too many keys."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} keys are merged (<<) into one mapping"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Composes a YAML mapping node. Raises MarkedYAMLError for a duplicate key."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        known_keys: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in known_keys:
                    raise yaml.MarkedYAMLError(problem=f"'{key.value}' is given twice", problem_mark=key.start_mark)
                known_keys.add(key.value)
        return node


# A date is text, as in YAML 1.2.
RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


# What to do about what the YAML reader finds, by a part of its message.
_YAML_HINTS = {
    "'\\t'": "; that is a tab: indent with spaces",
    "expected <block end>": "; this line is indented otherwise than those it belongs to",
    "mapping values are not allowed": "; is a line above not closed, or a text with a colon not in quotes?",
}


def parse_yaml(text: str, *, where: str) -> Any:
    """Parses YAML text with a separate copy for every alias. Raises RecipeError, which begins with `where`."""
    try:
        return copy_plain_value(yaml.load(text, RecipeLoader), where=where)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        context = f"{error.context}: " if error.context else ""
        hint = next((hint for found, hint in _YAML_HINTS.items() if found in str(error.problem)), "")
        raise RecipeError(f"{where}{line}: not a recipe in YAML: {context}{error.problem}{hint}") from None
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # the last of `!!int ""`
        raise RecipeError(f"{where}: not YAML: {error or type(error).__name__}") from None
    except RecursionError:
        raise RecipeError(
            f"{where}: an alias (*name) refers to a value that contains it, or lists nest too deep"
        ) from None


def copy_plain_value(value: Any, *, where: str) -> Any:
    """Returns a parsed YAML value with a separate copy for every alias.

    So `--set` changes one stage, not all that share an anchor. Raises RecipeError for what no recipe holds: aliases
    that multiply to more than MAX_VALUES values, integers of more than 64 bits, and text that is no Unicode.
    """
    n_values = 0

    def copy_value(value: Any) -> Any:
        nonlocal n_values
        n_values += 1
        if n_values > MAX_VALUES:
            raise RecipeError(
                f"{where}: more than {MAX_VALUES:,} values, each alias (*name) counted with what it stands for"
            )
        if isinstance(value, dict):
            return {copy_value(key): copy_value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [copy_value(item) for item in value]
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise RecipeError(f"{where}: an integer of {value.bit_length()} bits; at most 64 are read")
        if isinstance(value, str) and not _is_unicode(value):
            raise RecipeError(f"{where}: {value[:40]!r}: half a character (a lone surrogate), which no file can hold")
        return value

    return copy_value(value)


def _is_unicode(text: str) -> bool:
    """Returns whether a text has no lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _read_file(path: Path) -> dict[str, Any]:
    """Reads a recipe file's YAML as a mapping. Raises RecipeError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `qwen-align recipes` lists the shipped ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    raw = parse_yaml(text, where=str(path))
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with name and stages; found {type(raw).__name__}")
    return raw


def _validate_recipe(raw: dict[str, Any], path: Path) -> Recipe:
    """Validates raw settings and converts them to a Recipe. Raises RecipeError for wrong settings."""
    try:
        return Recipe.model_validate(raw, context={"folder": str(path.parent)})
    except ValidationError as error:
        raise explain_error(error, raw, path) from None

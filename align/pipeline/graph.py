"""Expands a recipe's variants to a list of stages in running order, with each reference resolved."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import Product, find_references
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.recipe import ModelSource, Recipe, RepeatBlock, StageSpec
from qwen_align.align.settings.recipe_file import Variant
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.registry import STAGE_KINDS


@dataclass(frozen=True)
class Stage:
    """A stage to run. `name` is unique in the plan; `origin` is its name in the recipe."""

    name: str
    origin: str
    settings: StageSpec
    seed: int
    runtime: Runtime
    axes: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)  # reference -> name of the stage or model meant

    @property
    def kind(self) -> str:
        return self.settings.kind


@dataclass(frozen=True)
class Graph:
    """The stages of a recipe in running order, and its external models by their unique names."""

    stages: list[Stage]
    models: dict[str, ModelSource]


def build_graph(variants: Sequence[Variant]) -> Graph:
    """Expands recipe variants to stages in running order, with every reference resolved to a stage or model.

    Raises RecipeError for double names, references to nothing or to the wrong product, and cycles.
    """
    models: dict[str, ModelSource] = {}
    stages: list[Stage] = []
    for axes, recipe in variants:
        suffix = "".join(f".{axis}={value}" for axis, value in axes.items())
        models |= {name + suffix: source for name, source in recipe.models.items()}
        stages += _bind_stages(recipe, axes, suffix)
    return Graph(_sort_by_dependencies(stages), models)


def _bind_stages(recipe: Recipe, axes: Mapping[str, str], suffix: str) -> Iterator[Stage]:
    """Yields the stages of one recipe variant with each reference resolved to its target's unique name.

    Raises RecipeError for a reference to nothing.
    """
    _check_unique_names(recipe)
    unbound = list(_unroll_repeats(recipe))
    products: dict[str, Product] = {
        name: "scorer" if source.is_scorer else "model" for name, source in recipe.models.items()
    }
    last: dict[str, str] = {name: name for name in recipe.models}
    for name, settings, _, _ in unbound:
        if name in products:
            raise RecipeError(f"'{name}' is the name of two stages or models; names are unique")
        products[name] = STAGE_KINDS[settings.kind].product
        last[settings.name] = name
    for name, settings, extra, scope in unbound:
        targets = {}
        for field_path, ref in find_references(settings):
            target = scope.get(ref, last.get(ref))
            fitting = [known for known in last if products[last[known]] == ref.product]
            if target is None:
                hint = format_suggestion(ref, fitting) or f"; nothing here makes {_add_article(ref.product)}"
                raise RecipeError(f"stage '{settings.name}': {field_path}: '{ref}' is no stage or model{hint}")
            if products[target] != ref.product:
                raise RecipeError(
                    f"stage '{settings.name}': {field_path}: '{ref}' makes {_add_article(products[target])}, but "
                    f"{_add_article(ref.product)} is wanted here{format_suggestion(ref, fitting)}"
                )
            targets[str(ref)] = target + suffix
        seed = recipe.seed if settings.seed is None else settings.seed
        own = settings.runtime or Runtime()
        changed = {name: getattr(own, name) for name in own.model_fields_set}
        runtime = recipe.runtime.model_copy(update=changed)
        yield Stage(name + suffix, settings.name, settings, seed, runtime, {**axes, **extra}, targets)


def _check_unique_names(recipe: Recipe) -> None:
    """Raises RecipeError when two stages or models of a recipe have the same name."""
    stages = [
        stage.name
        for item in recipe.stages
        for stage in (item.repeat.stages if isinstance(item, RepeatBlock) else [item])
    ]
    names = [*recipe.models, *stages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"'{twice}' is the name of two stages or models; names are unique")


def _unroll_repeats(recipe: Recipe) -> Iterator[tuple[str, StageSpec, dict[str, str], dict[str, str]]]:
    """Yields each stage of a recipe with repeat blocks unrolled, as (unique name, settings, axes, renamed references).

    `renamed references` maps the names that mean another stage inside a repeat.
    """
    for item in recipe.stages:
        if not isinstance(item, RepeatBlock):
            yield item.name, item, {}, {}
            continue
        block = item.repeat
        inner = [stage.name for stage in block.stages]
        referenced_names = {str(ref) for stage in block.stages for _, ref in find_references(stage)}
        for name, maker in block.carry.items():
            carry_entry = f"repeat: carry: '{name}: {maker}'"
            if maker not in inner:
                raise RecipeError(f"{carry_entry}: no stage here is called '{maker}'{format_suggestion(maker, inner)}")
            if name not in referenced_names:
                raise RecipeError(
                    f"{carry_entry}: no stage here refers to '{name}'{format_suggestion(name, referenced_names)}"
                )
        for number in range(1, block.times + 1):
            scope = {name: f"{name}.{number}" for name in inner}
            if number > 1:
                scope |= {name: f"{maker}.{number - 1}" for name, maker in block.carry.items()}
            for settings in block.stages:
                yield f"{settings.name}.{number}", settings, {"round": str(number)}, scope


def _sort_by_dependencies(stages: list[Stage]) -> list[Stage]:
    """Sorts stages topologically. Ties keep the recipe's order."""
    waiting, done, order = list(stages), set[str](), list[Stage]()
    names = {stage.name for stage in stages}
    while waiting:
        ready = next((stage for stage in waiting if not (set(stage.targets.values()) & names) - done), None)
        if ready is None:
            raise RecipeError(f"stages wait for each other in a circle: {' -> '.join(_find_cycle(waiting))}")
        waiting.remove(ready)
        done.add(ready.name)
        order.append(ready)
    return order


def _find_cycle(waiting: list[Stage]) -> list[str]:
    """Returns the names of stages on a dependency cycle, with the first name repeated at the end."""
    by_name = {stage.name: stage for stage in waiting}
    path = [waiting[0].name]
    while path.count(path[-1]) == 1:
        path.append(next(target for target in by_name[path[-1]].targets.values() if target in by_name))
    return path[path.index(path[-1]) :]


def _add_article(product: str) -> str:
    """Returns the name of a stage's product with its indefinite article, for error messages."""
    return "data" if product == "data" else f"an {product}" if product[0] in "aeiou" else f"a {product}"

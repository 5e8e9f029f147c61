"""A recipe's variants as plain stages in the order they run, each reference bound to what it means."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import Product, find_references
from qwen_align.align.settings.base import did_you_mean
from qwen_align.align.settings.recipe import ModelSource, Recipe, RepeatBlock, StageSpec
from qwen_align.align.settings.recipe_file import Variant
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.registry import STAGE_KINDS


@dataclass(frozen=True)
class Stage:
    """One stage to run. `name` is unique in the plan; `origin` is its name in the recipe."""

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
    """Stages in running order, and the models from outside, by their unique names."""

    stages: list[Stage]
    models: dict[str, ModelSource]


def build(variants: Sequence[Variant]) -> Graph:
    """Raises RecipeError for double names, references to nothing or to the wrong product, and cycles."""
    models: dict[str, ModelSource] = {}
    stages: list[Stage] = []
    for axes, recipe in variants:
        suffix = "".join(f".{axis}={value}" for axis, value in axes.items())
        models |= {name + suffix: source for name, source in recipe.models.items()}
        stages += _bound(recipe, axes, suffix)
    return Graph(_ordered(stages), models)


def _bound(recipe: Recipe, axes: Mapping[str, str], suffix: str) -> Iterator[Stage]:
    _check_names(recipe)
    unbound = list(_rounds(recipe))
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
        for place, ref in find_references(settings):
            target = scope.get(ref, last.get(ref))
            fitting = [known for known in last if products[last[known]] == ref.product]
            if target is None:
                hint = did_you_mean(ref, fitting) or f"; nothing here makes {_a(ref.product)}"
                raise RecipeError(f"stage '{settings.name}': {place}: '{ref}' is no stage or model{hint}")
            if products[target] != ref.product:
                raise RecipeError(
                    f"stage '{settings.name}': {place}: '{ref}' makes {_a(products[target])}, but "
                    f"{_a(ref.product)} is wanted here{did_you_mean(ref, fitting)}"
                )
            targets[str(ref)] = target + suffix
        seed = recipe.seed if settings.seed is None else settings.seed
        own = settings.runtime.model_dump(include=settings.runtime.model_fields_set) if settings.runtime else {}
        runtime = recipe.runtime.model_copy(update=own)
        yield Stage(name + suffix, settings.name, settings, seed, runtime, {**axes, **extra}, targets)


def _check_names(recipe: Recipe) -> None:
    stages = [
        stage.name
        for item in recipe.stages
        for stage in (item.repeat.stages if isinstance(item, RepeatBlock) else [item])
    ]
    names = [*recipe.models, *stages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"'{twice}' is the name of two stages or models; names are unique")


def _rounds(recipe: Recipe) -> Iterator[tuple[str, StageSpec, dict[str, str], dict[str, str]]]:
    """(unique name, settings, axes, what its references mean if not the plain name) with repeats unrolled."""
    for item in recipe.stages:
        if not isinstance(item, RepeatBlock):
            yield item.name, item, {}, {}
            continue
        block = item.repeat
        inner = [stage.name for stage in block.stages]
        meant = {str(ref) for stage in block.stages for _, ref in find_references(stage)}
        for name, maker in block.carry.items():
            said = f"repeat: carry: '{name}: {maker}'"
            if maker not in inner:
                raise RecipeError(f"{said}: no stage here is called '{maker}'{did_you_mean(maker, inner)}")
            if name not in meant:
                raise RecipeError(f"{said}: no stage here refers to '{name}'{did_you_mean(name, meant)}")
        for number in range(1, block.times + 1):
            scope = {name: f"{name}.{number}" for name in inner}
            if number > 1:
                scope |= {name: f"{maker}.{number - 1}" for name, maker in block.carry.items()}
            for settings in block.stages:
                yield f"{settings.name}.{number}", settings, {"round": str(number)}, scope


def _ordered(stages: list[Stage]) -> list[Stage]:
    """Topological order; among the stages that could run next, the one that stands first in the recipe."""
    waiting, done, order = list(stages), set[str](), list[Stage]()
    names = {stage.name for stage in stages}
    while waiting:
        ready = next((s for s in waiting if not (set(s.targets.values()) & names) - done), None)
        if ready is None:
            raise RecipeError(f"stages wait for each other in a circle: {' -> '.join(_circle(waiting))}")
        waiting.remove(ready)
        done.add(ready.name)
        order.append(ready)
    return order


def _circle(waiting: list[Stage]) -> list[str]:
    by_name = {stage.name: stage for stage in waiting}
    path = [waiting[0].name]
    while path.count(path[-1]) == 1:
        path.append(next(target for target in by_name[path[-1]].targets.values() if target in by_name))
    return path[path.index(path[-1]) :]


def _a(product: str) -> str:
    return "data" if product == "data" else f"an {product}" if product[0] in "aeiou" else f"a {product}"

"""Names how a model's training state is spread over the processes of a stage, and says what each way shards."""

import json
from typing import Any, NamedTuple

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.runtime import Runtime, Strategy


class Sharding(NamedTuple):
    """What a strategy divides among processes in place of holding it whole in each."""

    parameters: bool
    gradients: bool
    optimizer: bool


# Of DeepSpeed's documentation of ZeRO's stages, and of torch's of fully_shard.
SHARDINGS: dict[Strategy, Sharding] = {
    "ddp": Sharding(parameters=False, gradients=False, optimizer=False),
    "zero1": Sharding(parameters=False, gradients=False, optimizer=True),
    "zero2": Sharding(parameters=False, gradients=True, optimizer=True),
    "zero3": Sharding(parameters=True, gradients=True, optimizer=True),
    "fsdp2": Sharding(parameters=True, gradients=True, optimizer=True),
}
ZERO_STAGES: dict[Strategy, int] = {"zero1": 1, "zero2": 2, "zero3": 3}

# Gradients that ZeRO-1 and ZeRO-2 exchange at once, 0.8 GB in fp32: an example of DeepSpeed's documentation. Its
# default, 5e8, takes 2 GB beside a model that hardly fits.
REDUCED_NUMBERS = 200_000_000


def choose_strategy(runtime: Runtime) -> Strategy:
    """Returns the strategy of a runtime; `auto` is the stage of its DeepSpeed file, and without one ddp.

    Raises RecipeError where the DeepSpeed file cannot be read, or says no stage of ZeRO.
    """
    if runtime.deepspeed is None:
        return "ddp" if runtime.strategy == "auto" else runtime.strategy
    stage = _read_zero_stage(runtime.deepspeed)
    if stage not in ZERO_STAGES.values():
        raise RecipeError(
            f"runtime.deepspeed: {runtime.deepspeed}: zero_optimization.stage is {stage!r}; it has to be 1, 2 or 3. "
            "Without ZeRO leave the file out: strategy ddp does the same"
        )
    return name_zero_strategy(stage)


def name_zero_strategy(stage: int) -> Strategy:
    """Returns the strategy of a stage of ZeRO, ddp of stage 0."""
    return next((strategy for strategy, number in ZERO_STAGES.items() if number == stage), "ddp")


def uses_deepspeed(runtime: Runtime) -> bool:
    """Returns whether DeepSpeed trains a stage with this runtime."""
    return runtime.deepspeed is not None or runtime.strategy in ZERO_STAGES


def read_deepspeed_file(path: str) -> dict[str, Any]:
    """Reads a DeepSpeed configuration. Raises RecipeError where it is no JSON object."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise RecipeError(f"runtime.deepspeed: {path}: {error.strerror}; relative to the recipe") from None
    except ValueError as error:
        raise RecipeError(f"runtime.deepspeed: {path}: is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"runtime.deepspeed: {path}: has to be a JSON object, not a {type(content).__name__}")
    return content


def _read_zero_stage(path: str) -> Any:
    """Returns the stage of ZeRO that a DeepSpeed file says, 0 where it says none."""
    zero = read_deepspeed_file(path).get("zero_optimization", {})
    return zero.get("stage", 0) if isinstance(zero, dict) else zero

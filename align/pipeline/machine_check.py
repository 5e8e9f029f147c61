"""Checks that this machine has what stages ask for: GPUs, processes, optional packages. Nothing here imports torch."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from qwen_align.align.engines.environments import find_engine_python
from qwen_align.align.engines.vllm_client import VllmClient
from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.pipeline.graph import Stage
from qwen_align.align.pipeline.strategy_check import check_strategy
from qwen_align.align.references import list_fields
from qwen_align.align.settings.engine import DrawsWithEngine
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.strategy import choose_strategy
from qwen_align.align.settings.training import Lora, Optimizer
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.reward.base import count_cores

# What Linux has where there is a GPU that torch could use: NVIDIA's and AMD's drivers, WSL's, Jetson's.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu")
_COUNT_GPUS = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def check_machine(stage: Stage) -> None:
    """Raises RecipeError where a stage could not start on this machine."""
    kind = STAGE_KINDS[stage.kind]
    settings, runtime = stage.settings, stage.runtime
    if kind.needs_torch and runtime.device != "cpu":
        _check_gpus(stage)
    if kind.needs_torch and runtime.attention == "flash_attention_2":
        _check_flash_attention(runtime)
    _check_bitsandbytes(stage)
    settings.check_runtime(runtime)
    if isinstance(settings, DrawsWithEngine) and settings.engine == "vllm":
        _check_engine(stage)
    check_strategy(stage, count_processes(stage), count_gpus, has_deepspeed=_is_installed("deepspeed"))


def _check_flash_attention(runtime: Runtime) -> None:
    """Raises RecipeError where `flash_attention_2` cannot run: on a CPU, or without its package."""
    said = "runtime.attention: flash_attention_2: "
    if runtime.device == "cpu":
        raise RecipeError(f"{said}it runs on GPUs alone, and runtime.device is cpu; take auto")
    if not _is_installed("flash_attn"):
        raise RecipeError(
            f"{said}flash_attn is not installed: pip install flash-attn, or take auto, which uses torch's"
        )


def _check_engine(stage: Stage) -> None:
    """Raises RecipeError where vLLM cannot run for a stage: no environment, no server, GPUs missing or taken."""
    engine = stage.runtime.engine
    if count_nodes(stage) > 1:
        raise RecipeError("engine: vllm: was not made for runtime.nodes above 1; take one node, or engine: local")
    if engine.where == "server":
        try:
            VllmClient(engine.urls or [], stop_ids=[], vocab_size=0).read_version()
        except StageError as error:
            raise RecipeError(f"runtime.engine.urls: {error}") from error
        return
    find_engine_python("vllm")
    if engine.where == "own_gpus":
        gpus, n_gpus = engine.gpus or [], 0 if stage.runtime.device == "cpu" else count_gpus()
        wrong = [gpu for gpu in gpus if not count_processes(stage) <= gpu < n_gpus]
        if wrong:
            raise RecipeError(
                f"runtime.engine.gpus: {wrong}: torch sees {n_gpus} GPUs here, and the stage uses the first "
                f"{count_processes(stage)}; name others, or take where: beside"
            )


def check_home(home: Path) -> None:
    """Raises StageError where results cannot be written: no folder, or one that is not this user's to write in."""
    existing = home.resolve()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise StageError(f"{home}: cannot be written: {existing} is no folder; name another with --home")
    for folder in (existing, existing / "runs", existing / "store"):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise StageError(f"{folder}: cannot be written; name another folder with --home")


def describe_machine_use(stage: Stage) -> Iterator[str]:
    """Yields what is odd, though possible, about a stage's use of this machine."""
    n_processes, n_cores = count_processes(stage), count_cores()
    asks_for_gpus = stage.runtime.device != "cpu" and n_processes > 1 and count_gpus() > 0
    if n_processes > n_cores and not asks_for_gpus:
        yield (
            f"runtime.processes: {n_processes}, but this process may use {n_cores} cores: on a CPU more processes than "
            "cores are slower, not faster"
        )


def count_processes(stage: Stage) -> int:
    """Returns the number of processes that run a stage on each of its nodes."""
    return 1 if STAGE_KINDS[stage.kind].is_single_process else stage.runtime.processes


def count_nodes(stage: Stage) -> int:
    """Returns the number of machines that run a stage."""
    return 1 if STAGE_KINDS[stage.kind].is_single_process else stage.runtime.nodes


def find_gpu_driver() -> str | None:
    """Returns the file by which Linux shows the driver of a GPU that torch could use. Returns None without one."""
    return next((device for device in _GPU_DEVICES if Path(device).exists()), None)


@cache
def count_gpus() -> int:
    """Returns the number of GPUs that torch sees. It is asked in a process of its own, and only where there may be one.

    Raises RecipeError where torch cannot be imported.
    """
    if sys.platform == "linux" and find_gpu_driver() is None:
        return 0
    done = subprocess.run([sys.executable, "-P", "-c", _COUNT_GPUS], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise RecipeError(f"torch cannot be imported: {said}; `qwen-align doctor`")
    return int(done.stdout.split()[-1])


def _check_gpus(stage: Stage) -> None:
    """Raises RecipeError where a stage asks for more GPUs than there are."""
    device, n_processes = stage.runtime.device, count_processes(stage)
    if device == "auto" and n_processes == 1:
        return
    n_gpus = count_gpus()
    if device == "cuda" and not n_gpus:
        raise RecipeError(
            "runtime.device: cuda, but torch sees no GPU here: `qwen-align doctor`. Write device: auto; for a check of "
            "what another machine is to run: --set runtime.device=auto"
        )
    if 0 < n_gpus < n_processes:
        raise RecipeError(
            f"runtime.processes: {n_processes}, but torch sees {n_gpus} GPUs; ask for fewer, or for `device: cpu`"
        )


def _check_bitsandbytes(stage: Stage) -> None:
    """Raises RecipeError where a stage needs bitsandbytes, and it is missing or cannot do that here."""
    needs = list(_list_bitsandbytes_settings(stage.settings))
    if not needs:
        return
    if not _is_installed("bitsandbytes"):
        raise RecipeError(f"{needs[0]}: bitsandbytes is not installed: pip install 'qwen-align[qlora]'")
    if (strategy := choose_strategy(stage.runtime)) != "ddp":
        raise RecipeError(f"{needs[0]}: does not run under strategy {strategy}; take ddp, or leave it out")
    paged = next((one for one in needs if "paged" in one), None)
    if paged and (stage.runtime.device == "cpu" or not count_gpus()):
        raise RecipeError(f"{paged}: pages between a GPU and host memory, and there is no GPU here; leave out paged")


def _list_bitsandbytes_settings(settings: Any) -> Iterator[str]:
    """Yields the settings of a stage that bitsandbytes is needed for, with their values."""
    if isinstance(settings, Optimizer) and settings.optimizer != "adamw":
        yield f"optimizer: {settings.optimizer}"
    if any(isinstance(value, Lora) and value.base_weights == "nf4" for _, value in list_fields(settings)):
        yield "lora.base_weights: nf4"


def _is_installed(package: str) -> bool:
    """Returns whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None

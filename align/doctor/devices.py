"""Finds the devices that torch sees, in a process of its own, and says what of Qwen3 fits each of them."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from qwen_align.align.commands.scaling_tables import GRPO, METHODS, SFT
from qwen_align.align.doctor.finding import Finding
from qwen_align.align.estimation.device import Device
from qwen_align.align.estimation.host_memory import read_memory_limit
from qwen_align.align.estimation.known_configs import QWEN3_SIZES, build_qwen3_config
from qwen_align.align.estimation.stage_estimate import StageEstimate, estimate_stage, judge_fit
from qwen_align.align.estimation.units import format_gib
from qwen_align.align.pipeline.machine_check import find_gpu_driver
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime

PROBE_LIMIT_S = 60.0  # importing torch took up to 20 s on two cores with a load of 30
_TAKEN_SHARE = 0.1  # of a GPU that others may have before it is said: a desktop takes about so much of 8 GB
_FIT_TOKENS = 2048  # of a row, or of a completion; our choice, a long answer of a model that thinks little

_PROBE = """
import json, torch
gpus = []
for number in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(number)
    gpus.append({"name": torch.cuda.get_device_name(number), "free": free, "total": total,
                 "capability": torch.cuda.get_device_capability(number)})
build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else ""
distributed = torch.distributed
print(json.dumps({"torch": torch.__version__, "build": build, "gpus": gpus, "threads": torch.get_num_threads(),
    "backends": [name for name in ("gloo", "nccl") if getattr(distributed, f"is_{name}_available")()]}))
"""


class Probed(NamedTuple):
    """What torch says of the machine: the bytes of each GPU's memory, the ways in which processes can be connected."""

    gpu_bytes: list[int]
    backends: list[str]


class DeviceProbe:
    """A process that imports torch and looks for devices, while other checks go on."""

    def __init__(self) -> None:
        """Starts the process."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROBE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def collect(self) -> tuple[Probed | None, list[Finding]]:
        """Waits for the answer and returns it with the findings. None: torch does not work."""
        try:
            said, complained = self._process.communicate(timeout=PROBE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            advice = "a driver or a file system that hangs: run `python -c 'import torch; torch.cuda.device_count()'`"
            return None, [Finding("torch", f"did not answer within {PROBE_LIMIT_S:.0f} s", advice, is_bad=True)]
        if self._process.returncode != 0:
            last = (complained.strip().splitlines() or ["it ended without a message"])[-1]
            return None, [Finding("torch", last, "reinstall torch", is_bad=True)]
        answer = json.loads(said.splitlines()[-1])
        probed = Probed([gpu["total"] for gpu in answer["gpus"]], answer["backends"])
        return probed, list(_describe_devices(answer))


def _describe_devices(answer: dict[str, Any]) -> Iterator[Finding]:
    """Yields findings of the devices that torch sees, alike ones in one."""
    if not answer["gpus"]:
        found, driver = f"no GPU, {answer['threads']} CPU threads", find_gpu_driver()
        if driver is None:
            yield Finding("devices", found)
        elif answer["build"]:
            advice = f"it needs {answer['build']}: is the driver too old, or CUDA_VISIBLE_DEVICES empty?"
            yield Finding("devices", f"{found}, though {driver} is there", advice, is_bad=True)
        else:
            advice = (
                "install the build for GPUs: pip install -c constraints.txt torch, from PyPI or as pytorch.org says"
            )
            said = f"{found}, though {driver} is there: torch {answer['torch']} is a build for CPUs"
            yield Finding("devices", said, advice, is_bad=True)
        return
    alike = Counter((gpu["name"], gpu["total"]) for gpu in answer["gpus"])
    names = ", ".join(f"{n} x {name}" if n > 1 else name for (name, _), n in alike.items())
    yield Finding("devices", f"{names} ({answer['build']})")
    for number, gpu in enumerate(answer["gpus"]):
        free, total = gpu["free"], gpu["total"]
        is_taken = free < (1 - _TAKEN_SHARE) * total
        advice = "other processes have the rest: nvidia-smi" if is_taken else ""
        yield Finding("memory", f"GPU {number}: {format_gib(free)} of {format_gib(total)} GiB free", advice)
        if tuple(gpu["capability"]) < (8, 0):  # Ampere, the first with bf16
            yield Finding("precision", f"GPU {number}: {gpu['name']} has no bf16 arithmetic", "set precision: fp32")


def check_fit(probed: Probed) -> Iterator[Finding]:
    """Yields which Qwen3 fits each kind of device, by tuning method; the machine's memory where there is no GPU."""
    if not probed.gpu_bytes:
        n_bytes = read_memory_limit()
        yield _describe_fit(Device(n_bytes), f"{format_gib(n_bytes)} GiB of the machine", is_on_gpu=False)
    for n_bytes, n_devices in Counter(probed.gpu_bytes).items():
        yield _describe_fit(Device(n_bytes), f"{format_gib(n_bytes)} GiB of one GPU", is_on_gpu=True)
        if n_devices > 1:
            where = f"{n_devices} GPUs of {format_gib(n_bytes)} GiB, zero3"
            yield _describe_fit(Device(n_bytes, n_devices), where, is_on_gpu=True)


def _describe_fit(device: Device, where: str, *, is_on_gpu: bool) -> Finding:
    """Returns the largest Qwen3 that fits a device, for each stage and method."""
    said = []
    for kind, stage in (("sft", SFT), ("grpo", GRPO)):
        methods = METHODS if device.n_devices == 1 else {"full": None}  # adapters are not divided among GPUs
        sizes = [f"{name} {_find_largest(stage, lora, device, is_on_gpu=is_on_gpu)}" for name, lora in methods.items()]
        said.append(f"{kind} {', '.join(sizes)}")
    return Finding("fits", f"{where}, {_FIT_TOKENS:,} tokens: {'; '.join(said)}")


def _find_largest(stage: dict[str, Any], lora: dict[str, Any] | None, device: Device, *, is_on_gpu: bool) -> str:
    """Returns the largest size of Qwen3 that a stage fits a device with, or `none`."""
    length = {"max_tokens": _FIT_TOKENS} if "max_tokens" in stage else {}
    sampling = {"sampling": {**stage["sampling"], "max_tokens": _FIT_TOKENS}} if "sampling" in stage else {}
    settings = TypeAdapter[Any](AnyStage).validate_python({**stage, **length, **sampling, "lora": lora})
    runtime = Runtime(
        device="cuda" if is_on_gpu else "cpu",
        micro_batch=1,
        gradient_checkpointing=True,
        prefill_tokens=4096,
        processes=device.n_devices,
        strategy="zero3" if device.n_devices > 1 else "ddp",
    )
    largest = "none"
    for size in QWEN3_SIZES:
        estimate = estimate_stage(settings, runtime, build_qwen3_config(size), device, is_on_gpu=is_on_gpu)
        if estimate is None:
            return largest
        if judge_fit(estimate.peak.total + _count_mapped_bytes(estimate), device.n_bytes) != "fits":
            return largest
        largest = size
    return largest


def _count_mapped_bytes(estimate: StageEstimate) -> float:
    """Returns the bytes of weights that stay pages of their files on a CPU, read anew where they do not fit."""
    model = estimate.model
    return 0.0 if model is None else model._replace(maps_files=False).weight_bytes - model.weight_bytes

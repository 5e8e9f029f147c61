"""Defines the settings of the engine that samples completions: which one a stage takes, and where vLLM runs."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.settings.base import Strict

EngineName = Literal["local", "vllm"]

# Of a GPU's memory, in vLLM's own unit. 0.9 is vLLM's default; beside a trainer, TRL 1.16's of a colocated vLLM.
SHARE_ALONE, SHARE_BESIDE_TRAINER = 0.9, 0.3


class EngineSettings(Strict):
    """Settings of where vLLM runs for stages with `engine: vllm`; a stage that draws by itself does not read them."""

    where: Literal["beside", "own_gpus", "server"] = Field(
        "beside",
        description="beside: a child process of each process of the stage, on its device; own_gpus: child processes on "
        "`gpus`; server: servers that run already, at `urls`",
    )
    gpus: list[int] | None = Field(
        None, min_length=1, description="of own_gpus: numbers of the GPUs, none of which the stage itself uses"
    )
    replicas: int = Field(1, ge=1, le=1024, description="of own_gpus: servers that share the prompts")
    tensor_parallel: int = Field(1, ge=1, le=1024, description="of own_gpus: GPUs that hold one copy of the model")
    urls: list[str] | None = Field(
        None,
        min_length=1,
        description="of server: addresses, such as http://localhost:8000; servers read new weights from the stage's "
        "folder, which they must see under the same path",
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of a GPU's memory that vLLM takes; null = 0.3 beside a stage that trains, else 0.9",
    )
    enable_sleep_mode: bool = Field(False, description="of beside: vLLM frees its memory while the policy is trained")
    start_timeout_s: float = Field(
        600.0,  # our choice: a busy machine takes a minute for the smallest model, and a disk some for the largest
        gt=0,
        description="seconds within which vLLM has to be ready",
    )

    @property
    def is_child(self) -> bool:
        """Returns whether the stage starts the servers itself."""
        return self.where != "server"

    def get_memory_share(self, *, trains: bool) -> float:
        """Returns the share of a GPU's memory that vLLM takes."""
        if self.gpu_memory_utilization is not None:
            return self.gpu_memory_utilization
        return SHARE_BESIDE_TRAINER if trains and self.where == "beside" else SHARE_ALONE

    @model_validator(mode="after")
    def _check_settings_fit_place(self) -> Self:
        """Checks that each setting belongs to where the engine runs. Raises ValueError otherwise."""
        belongs = {
            "gpus": ("own_gpus",),
            "replicas": ("own_gpus",),
            "tensor_parallel": ("own_gpus",),
            "urls": ("server",),
            "gpu_memory_utilization": ("beside", "own_gpus"),
            "enable_sleep_mode": ("beside",),
            "start_timeout_s": ("beside", "own_gpus"),
        }
        for name, places in belongs.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.where not in places:
                raise ValueError(f"{name}: is for where: {' or '.join(places)}; with where: {self.where} leave it out")
        if self.where == "server" and self.urls is None:
            raise ValueError("where: server needs urls, such as [http://localhost:8000]")
        for url in self.urls or []:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"urls: '{url}' is no address; one begins with http:// or https://")
        if self.where == "own_gpus":
            n_wanted = self.replicas * self.tensor_parallel
            if self.gpus is None or len(set(self.gpus)) != n_wanted or len(self.gpus) != n_wanted:
                raise ValueError(
                    f"where: own_gpus needs {n_wanted} different gpus (replicas x tensor_parallel); found {self.gpus}"
                )
        return self


class DrawsWithEngine(Strict):
    """The setting that says which engine samples a stage's completions."""

    engine: EngineName = Field(
        "local",
        description="what samples the completions: local = the model in the stage's own process; vllm = vLLM, in an "
        "environment of its own (`qwen-align engines install vllm`), as runtime.engine says",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_settings_of_engine(cls, data: Any) -> Any:
        """Raises ValueError where `engine` has settings of its own, as it had before."""
        if isinstance(data, Mapping) and isinstance(data.get("engine"), Mapping):
            raise ValueError(
                "engine: is a name: write engine: vllm; where vLLM runs is in runtime.engine: {where: beside, own_gpus "
                "or server, ...}"
            )
        return data

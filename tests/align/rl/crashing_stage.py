"""Runs online-RL stages that, where they are told to, die in the middle without a word.

Every line of the standard input is `[FOLDER]` or `[FOLDER, WHERE, N]` in JSON. FOLDER holds job.json (settings,
inputs, runtime; `mask_every`: every so many-th token is left out of the loss). WHERE is a place of PLACES, and N how
often it is passed before the end. The answer is the exit code.
"""

import dataclasses
import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qwen_align.align.context import Context
from qwen_align.align.generation import batched_decoding
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.rl import judge, trainer
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import grpo, ppo  # noqa: F401 - imported before the forks
from qwen_align.align.store import integrity

# Where it dies: in the middle of rollouts, of judging, of an update, or while a checkpoint is written.
PLACES: dict[str, tuple[Any, str]] = {
    "rollouts": (batched_decoding.DecodingSlots, "_decode_step"),
    "judging": (judge.Judge, "_judge_group"),
    "update": (trainer.OnlineTrainer, "_compute_completion_loss"),
    "checkpoint": (trainer.OnlineTrainer, "_save_extra_state"),
    "half a checkpoint": (integrity, "seal_folder"),
}


def die_at(where: str, n: int) -> None:
    owner, name = PLACES[where]
    original: Callable[..., Any] = getattr(owner, name)
    passed = 0

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == n:
            os._exit(9)
        return original(*arguments, **settings)

    setattr(owner, name, counted)


def mask_every(n: int) -> None:
    """From now on the engine's completions leave every `n`-th token out of the loss."""
    generate = LocalEngine.generate

    def generate_masked(self: LocalEngine, requests: Sequence[Request]) -> Iterator[Generation]:
        for generation in generate(self, requests):
            mask = [position % n != 1 for position in range(len(generation.token_ids))]
            yield dataclasses.replace(generation, loss_mask=mask)

    LocalEngine.generate = generate_masked  # type: ignore[method-assign]


def run(folder: Path, *crash: str) -> None:
    job = json.loads((folder / "job.json").read_text())
    if "mask_every" in job:
        mask_every(job["mask_every"])
    if crash:
        die_at(crash[0], int(crash[1]))
    settings: Any = TypeAdapter[Any](AnyStage).validate_python(job["settings"], context={"folder": str(folder)})
    out = folder / "out"
    out.mkdir(exist_ok=True)
    context = Context(out, 0, Runtime.model_validate(job["runtime"]), is_main=os.environ.get("RANK", "0") == "0")
    stage = importlib.import_module(f"qwen_align.align.stages.{settings.kind}")
    summary = stage.run(settings, {name: Path(path) for name, path in job["inputs"].items()}, out, context)
    if context.is_main:
        (out / "summary.json").write_text(json.dumps(summary))


def main() -> None:
    """Forks for every line of input; the largest exit code is the answer. Nothing here may start a thread."""
    for line in sys.stdin:
        folder, *crash = json.loads(line)
        n_processes = json.loads((Path(folder) / "job.json").read_text())["runtime"].get("processes", 1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(n_processes):
            children.append(os.fork())
            if children[-1] == 0:
                if n_processes > 1:
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes)}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                with (Path(folder) / "log.txt").open("a") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    run(Path(folder), *crash)
                    os._exit(0)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        print(max(map(os.waitstatus_to_exitcode, statuses)), flush=True)


if __name__ == "__main__":
    main()

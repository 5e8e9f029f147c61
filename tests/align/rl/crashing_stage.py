"""Runs online-RL stages that, where they are told to, die in the middle without a word.

Every line of the standard input is `[FOLDER]` or `[FOLDER, WHERE, N]` in JSON. FOLDER holds job.json (settings,
inputs). WHERE is a place of PLACES, and N how often it is passed before the end. The answer is the exit code.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qwen_align.align.context import Context
from qwen_align.align.generation import batched_decoding
from qwen_align.align.rl import judge, trainer
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import grpo, ppo  # noqa: F401 - imported before the forks
from qwen_align.align.store import integrity

# Where it dies: in the middle of rollouts, of judging, of an update, or while a checkpoint is written.
PLACES: dict[str, tuple[Any, str]] = {
    "rollouts": (batched_decoding.Slots, "_step"),
    "judging": (judge.Judge, "_judge"),
    "update": (trainer.OnlineTrainer, "_loss"),
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


def run(folder: Path, *crash: str) -> None:
    job = json.loads((folder / "job.json").read_text())
    if crash:
        die_at(crash[0], int(crash[1]))
    settings: Any = TypeAdapter[Any](AnyStage).validate_python(job["settings"], context={"folder": str(folder)})
    out = folder / "out"
    out.mkdir(exist_ok=True)
    context = Context(out, 0, Runtime.model_validate(job["runtime"]))
    stage = importlib.import_module(f"qwen_align.align.stages.{settings.kind}")
    summary = stage.run(settings, {name: Path(path) for name, path in job["inputs"].items()}, out, context)
    (out / "summary.json").write_text(json.dumps(summary))


def main() -> None:
    """A fork for every line of input; its exit code is the answer. Nothing here may start a thread."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            folder, *crash = json.loads(line)
            with (Path(folder) / "log.txt").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                run(Path(folder), *crash)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()

"""The warm server: imports torch, transformers, trl and peft once, starts no thread, and forks a process a stage.

`python -m qwen_align.align.server` reads one JSON object a line (folder, report, log) and writes one a line:
`{"ready": seconds}` once, then `{"pid": n}` and `{"exit": status}` for each stage. It ends with its input.
"""

import ctypes
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

# Environment in which no library starts a thread, which a fork would lose: numpy's BLAS, Arrow's allocator.
NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}

PARENT = "QWEN_ALIGN_PARENT"  # environment: the process whose end is to be ours


def main() -> None:
    started = time.monotonic()
    die_with_parent()
    _import_everything()
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, pages shared with the forks
    imported = time.monotonic() - started
    _say({"ready": imported})
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _stage(request, imported)
        _say({"pid": pid})
        _, status = os.waitpid(pid, 0)
        imported = 0.0  # only the first stage has waited for the imports
        _say({"exit": os.waitstatus_to_exitcode(status)})


def _import_everything() -> None:
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401
    from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # noqa: F401


def _stage(request: dict[str, str], imported: float) -> None:
    from qwen_align.align.worker import run_stage

    die_with_parent()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = run_stage(
        Path(request["folder"]), Path(request["report"]), started=time.monotonic(), imported_before=imported
    )
    os._exit(code)


def die_with_parent() -> None:
    """On Linux this process is killed when its parent dies, however it dies; elsewhere it ends with its input.

    A parent that names itself in the environment may also have died before this call, while Python started.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            os._exit(128 + signal.SIGKILL)
        os.environ[PARENT] = str(os.getpid())  # for what this process starts


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()

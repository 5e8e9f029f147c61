"""The warm server: imports torch, transformers, trl and peft once, starts no thread, and forks the stages' processes.

`python -m qwen_align.align.pipeline.warm_server` reads one JSON object a line (folder, report, log, processes) and
writes one a line: `{"ready": seconds}` once, then `{"pids": [n]}` and `{"exit": status}` for each stage. It ends with
its input.
"""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_align.align.pipeline.process_lifetime import die_with_parent

# Environment in which no library starts a thread, which a fork would lose: numpy's BLAS, Arrow's allocator.
NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}

GRACE_S = 30.0  # for processes whose fellow has died, as torchrun gives


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
        pids = _fork(request, imported)
        _say({"pids": pids})
        imported = 0.0  # only the first stage has waited for the imports
        _say({"exit": _wait(pids)})


def _import_everything() -> None:
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401
    from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # noqa: F401

    from qwen_align.align.pipeline import worker  # noqa: F401


def _fork(request: dict[str, Any], imported: float) -> list[int]:
    """The stage's processes; several find each other as those of torchrun do, by a store that the first one keeps."""
    n = request["processes"]
    read, write = os.pipe()
    pids = [os.fork()]
    if pids[0] == 0:
        _enter(request)
        if n > 1:
            store = _kept_store(n)
            os.write(write, str(store.port).encode())
            _become(0, n, store.port)
        _stage(request, imported)
    os.close(write)
    port = os.read(read, 16) if n > 1 else b""  # nothing, if the first has died
    os.close(read)
    for rank in range(1, n if port else 1):
        pids.append(os.fork())
        if pids[-1] == 0:
            _enter(request)
            _become(rank, n, int(port))
            _stage(request, imported)
    return pids


def _kept_store(n: int) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is documented

    return TCPStore("127.0.0.1", 0, n, is_master=True, wait_for_workers=False)


def _become(rank: int, n: int, port: int) -> None:
    """One of `n` processes, each with its share of the cores."""
    import torch

    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    kept = {"TORCHELASTIC_USE_AGENT_STORE": True}  # the store is there already
    os.environ.update({name: str(value) for name, value in {**ranks, **where, **kept}.items()})
    torch.set_num_threads(max(1, torch.get_num_threads() // n))


def _wait(pids: Sequence[int]) -> int:
    """Waits for all: 0, or the status of the first that failed, after which the others are stopped."""
    left, failed, deadline = set(pids), 0, 0.0
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG if failed else 0)
        left.discard(pid)
        code = os.waitstatus_to_exitcode(status) if pid else 0
        if code and not failed:
            failed, deadline = code, time.monotonic() + GRACE_S
            _signal(left, signal.SIGTERM)
        elif not pid:
            if time.monotonic() > deadline:
                _signal(left, signal.SIGKILL)
            time.sleep(0.05)
    return failed


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _enter(request: dict[str, Any]) -> None:
    die_with_parent()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def _stage(request: dict[str, Any], imported: float) -> None:
    from qwen_align.align.pipeline.worker import run_stage

    code = run_stage(
        Path(request["folder"]), Path(request["report"]), started=time.monotonic(), imported_before=imported
    )
    os._exit(code)


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()

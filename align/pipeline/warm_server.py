"""Imports torch, transformers, trl and peft once in a server process, which then forks the processes of stages.

It starts no thread.

`python -P -m qwen_align.align.pipeline.warm_server FD` reads one JSON object a line (folder, report, log, processes,
is_group; for a stage of several nodes also its place among them) and writes one a line to the file descriptor:
`{"ready": seconds}` once, then `{"pids": [n]}` and `{"exit": status}` for each stage. It ends with its input.

What it gains is a stage's start: an SFT stage of one step on the embedded model takes 0.4 s of processor time forked
from a server that is ready, and 7 to 8 s in a fresh process; on the clock 1.2 s against 22 to 31 s (2026-11-29, 2 Xeon
cores under a load of 9, three stages each way). The quickstart has 11 stages that import torch. It should go when these
imports take less than a second, or when no stage runs on a CPU: stages on a GPU are not forked from it.
"""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from qwen_align.align.pipeline.node_place import ALONE, NodePlace
from qwen_align.align.pipeline.process_lifetime import die_with_parent

# Environment in which no library starts a thread, which a fork would lose: numpy's BLAS, Arrow's allocator.
NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}

TERMINATE_GRACE_S = 30.0  # for processes to end after one of them has failed, as torchrun gives


def main() -> None:
    """Imports the libraries, then forks a stage for each request until the input ends."""
    started = time.monotonic()
    die_with_parent()
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    os.set_inheritable(answers.fileno(), False)
    _import_libraries()
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, pages shared with the forks
    imported = time.monotonic() - started
    _write_message({"ready": imported}, answers)
    for line in sys.stdin:
        request = json.loads(line)
        pids = fork_stage(request, imported)
        _write_message({"pids": pids}, answers)
        imported = 0.0  # only the first stage has waited for the imports
        _write_message({"exit": wait_for_processes(pids)}, answers)


def _import_libraries() -> None:
    """Imports the libraries that stages need, without starting any thread."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401
    from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # noqa: F401

    from qwen_align.align.pipeline import worker  # noqa: F401


def fork_stage(request: dict[str, Any], imported: float) -> list[int]:
    """Forks the processes of a requested stage and returns their process ids.

    Several find each other as those of torchrun do, by a store that the first one opens, on node 0 of several.
    `imported`: seconds of imports that this stage has waited for.
    """
    n_processes = request["processes"]
    place = NodePlace(**request["place"]) if "place" in request else ALONE
    if place.node > 0:
        return [_fork_process(request, imported, rank, place, place.port) for rank in range(n_processes)]
    read, write = os.pipe()
    pids = [os.fork()]
    if pids[0] == 0:
        _attach_to_log(request)
        if request["is_group"]:
            store = _open_rendezvous_store(place, n_processes * place.nodes)
            os.write(write, str(store.port).encode())
            _set_rank(0, n_processes, place, store.port)
        _run_and_exit(request, imported)
    os.close(write)
    port = os.read(read, 16) if request["is_group"] else b""  # nothing, if the first has died
    os.close(read)
    others = range(1, n_processes if port else 1)
    return pids + [_fork_process(request, imported, rank, place, int(port)) for rank in others]


def _fork_process(request: dict[str, Any], imported: float, local_rank: int, place: NodePlace, port: int) -> int:
    """Forks one of the processes of a stage, which finds the others at the port of their store. Returns its id."""
    pid = os.fork()
    if pid == 0:
        _attach_to_log(request)
        _set_rank(local_rank, request["processes"], place, port)
        _run_and_exit(request, imported)
    return pid


def _open_rendezvous_store(place: NodePlace, n_processes: int) -> Any:
    """Opens the torch store through which the processes of a stage find each other."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is documented

    return TCPStore(place.address, place.port, n_processes, is_master=True, wait_for_workers=False)


def _set_rank(local_rank: int, n_processes: int, place: NodePlace, port: int) -> None:
    """Sets the distributed rank of this process in the environment and limits it to its share of the CPU cores."""
    import torch

    rank, world = place.node * n_processes + local_rank, place.nodes * n_processes
    ranks = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": n_processes}
    rendezvous = {"GROUP_RANK": place.node, "MASTER_ADDR": place.address, "MASTER_PORT": port}
    agent_store = {"TORCHELASTIC_USE_AGENT_STORE": True}  # the first process has opened the store
    os.environ.update({name: str(value) for name, value in {**ranks, **rendezvous, **agent_store}.items()})
    os.environ.update(place.name_interface())
    torch.set_num_threads(max(1, torch.get_num_threads() // n_processes))


def wait_for_processes(pids: Sequence[int]) -> int:
    """Waits for all processes to exit and returns 0 or the first failing exit status.

    The first failure stops the other processes.
    """
    running, failed, deadline = set(pids), 0, 0.0
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG if failed else 0)
        running.discard(pid)
        code = os.waitstatus_to_exitcode(status) if pid else 0
        if code and not failed:
            failed, deadline = code, time.monotonic() + TERMINATE_GRACE_S
            _signal_processes(running, signal.SIGTERM)
        elif not pid:
            if time.monotonic() > deadline:
                _signal_processes(running, signal.SIGKILL)
            time.sleep(0.05)
    return failed


def _signal_processes(pids: set[int], number: int) -> None:
    """Sends a signal to each of the given processes."""
    for pid in pids:
        os.kill(pid, number)


def _attach_to_log(request: dict[str, Any]) -> None:
    """Redirects the output of a forked process to the stage's log and makes the process end with its parent."""
    die_with_parent()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def _run_and_exit(request: dict[str, Any], imported: float) -> None:
    """Runs the stage in this forked process and exits with the stage's exit code."""
    from qwen_align.align.pipeline.worker import run_stage

    code = run_stage(
        Path(request["folder"]), Path(request["report"]), started=time.monotonic(), imported_before=imported
    )
    os._exit(code)


def _write_message(message: dict[str, Any], answers: IO[str]) -> None:
    """Writes one JSON message to the launcher."""
    print(json.dumps(message), file=answers, flush=True)


if __name__ == "__main__":
    main()

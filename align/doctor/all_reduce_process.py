"""One process of the doctor's all-reduce: `python -m qwen_align.align.doctor.all_reduce_process TASK`.

It prints a JSON line at the beginning of each phase, and one at its end or for what ended it.
"""

import json
import sys
import time
from datetime import timedelta
from typing import Any

_NUMBERS = 4 << 20  # 16 MiB of fp32, a bucket of DDP's gradients being 25
_PERIOD = 97  # a prime: parts that lie in the wrong place are noticed
_REPEATS = 3
_WAIT = timedelta(seconds=60)


def main(task: dict[str, Any]) -> None:
    """Joins the others and sums a tensor whose sum is known."""
    phase = "imports"
    _say(phase=phase)
    try:
        import torch
        from torch import distributed

        phase = "meets"
        _say(phase=phase)
        device = torch.device("cuda", task["device"]) if task["backend"] == "nccl" else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        host = f"[{task['address']}]" if ":" in task["address"] else task["address"]
        distributed.init_process_group(
            task["backend"],
            init_method=f"tcp://{host}:{task['port']}",
            rank=task["rank"],
            world_size=task["world"],
            timeout=_WAIT,
        )
        phase = "sums"
        _say(phase=phase)
        seconds = []
        pattern = torch.arange(_NUMBERS, device=device).remainder(_PERIOD).float()  # sums of it are exact in fp32
        for _ in range(_REPEATS):
            part = pattern * (task["rank"] + 1)
            distributed.barrier()
            began = time.monotonic()
            distributed.all_reduce(part)
            part[0].item()  # waits for a GPU
            seconds.append(time.monotonic() - began)
            if not torch.equal(part, pattern * (task["world"] * (task["world"] + 1) // 2)):
                phase = "compares"
                raise ArithmeticError("the sum differs from what it has to be")
        _say(phase="done", seconds=min(seconds), bytes=4 * _NUMBERS)
        distributed.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - whatever it is, the doctor words it
        first = (str(error).strip().splitlines() or [""])[0]
        _say(phase=phase, error=f"{type(error).__name__}: {first[:300]}")
        sys.exit(1)


def _say(**said: Any) -> None:
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

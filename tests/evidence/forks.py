"""Runs pytest in forks of a process that has imported what takes seconds, and nothing of this package.

Every line of the standard input is a JSON object with `arguments` and `log`. The answer is two lines: the process id of
the fork, then its exit code.
"""

import json
import os
import sys

import hypothesis  # noqa: F401
import peft  # noqa: F401
import pytest
import torch  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401
from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # noqa: F401


def main() -> None:
    """Nothing here may start a thread: a fork would lose it."""
    assert not any(name.partition(".")[0] == "qwen_align" for name in sys.modules), "a fault would be planted too late"
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            run(job["arguments"], job["log"])
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(arguments: list[str], log: str) -> None:
    os.setsid()  # so that what the tests start ends with them
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = int(pytest.main(arguments))
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()

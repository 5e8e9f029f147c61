r"""Errors and verdicts per CPU second of our math reward beside math-verify's, on the same items, in one run.

CPU seconds are those of the process and of all its children. math-verify gets the gold as `$...$` and runs in the
main thread, where its own time limits hold; on the bombs each of its calls has a process that is killed at 20 s.
Items are those of the shared cases beside the real data (QWEN_ALIGN_TEST_DATA, else ../shared/data), else our own.

    python tests/bench/math_answer.py [--numbers 20000] [--no-bombs]
"""

import argparse
import json
import logging
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import psutil
from math_verify import parse, verify

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from qwen_align.reward.math_answer import MathAnswer  # noqa: E402
from tests.reward.math import test_labelled_pairs, test_resource_bombs  # noqa: E402

CASES = (
    Path(os.environ.get("QWEN_ALIGN_TEST_DATA", ROOT.parent / "shared" / "data")).parent / "cases" / "math_cases.jsonl"
)
KILL_S = 20.0
REWARD = MathAnswer()
logging.disable(logging.CRITICAL)


class Item(NamedTuple):
    """A completion with its gold and its label."""

    text: str
    gold: str
    right: bool
    is_public: bool = False


class Judged(NamedTuple):
    """A verdict with its cost."""

    is_paid: bool
    reason: str
    cpu_s: float
    wall_s: float


def main() -> None:
    """Measures both sides on all items and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--numbers", type=int, default=20_000, help="plain numeric items for ours; math-verify gets 1 in 50"
    )
    parser.add_argument("--no-bombs", action="store_true")
    options = parser.parse_args()
    warm_up()
    items, bombs = load_shared_items() if CASES.is_file() else load_own_items()
    print(f"{len(items)} labelled items ({'shared cases' if CASES.is_file() else 'our own'})")
    ours = print_report("ours", items, [measure_verdict(judge_with_ours, item) for item in items])
    theirs = print_report("math-verify", items, [measure_verdict(judge_with_math_verify, item) for item in items])
    print(f"  ratio of verdicts per CPU second: {ours / theirs:.1f}")
    numbers = draw_plain_numbers(options.numbers)
    print(f"{len(numbers)} plain numbers, none twice")
    start = measure_cpu_s()
    paid = [judge_with_ours(item)[0] for item in numbers]
    ours = len(numbers) / (measure_cpu_s() - start)
    errors = sum(is_paid != item.right for is_paid, item in zip(paid, numbers, strict=True))
    print(f"  ours: {errors} errors, {ours:,.0f} verdicts per CPU second")
    theirs = print_report(
        "math-verify", numbers[::50], [measure_verdict(judge_with_math_verify, item) for item in numbers[::50]]
    )
    print(f"  ratio: {ours / theirs:,.0f}")
    if not options.no_bombs:
        print_bomb_comparison(bombs)


def warm_up() -> None:
    """Pays for imports and the workers before anything is measured."""
    REWARD.warm_up()
    for answer, gold in ((r"\int_0^2 x\,dx", "2"), (r"\sin\frac{\pi}{8}", r"\cos\frac{3\pi}{8}"), ("x+1", "1+x")):
        judge_with_ours(Item(box_answer(answer), gold, True))
        judge_with_math_verify(Item(box_answer(answer), gold, True))


def box_answer(answer: str) -> str:
    """Returns a completion with the answer in a box."""
    return rf"The final answer is $\boxed{{{answer}}}$."


def load_shared_items() -> tuple[list[Item], list[Item]]:
    """Loads the labelled main cases, and the bombs."""
    items: dict[bool, list[Item]] = {False: [], True: []}
    for case in map(json.loads, CASES.read_text("utf-8").splitlines()):
        if not case.get("inj"):
            text = case["pred"] if case["mode"] == "response" else box_answer(case["pred"])
            is_public = case["source"] != "adversarial (own)"
            items[bool(case.get("hang"))].append(Item(text, case["gold"], case["should_match"], is_public))
    return items[False], items[True]


def load_own_items() -> tuple[list[Item], list[Item]]:
    """Loads the labelled cases of our own tests, and their bombs."""
    cases = [case for case in test_labelled_pairs.CASES if case["right"] is not None]
    items = [Item(test_labelled_pairs.build_completion(case), str(case["gold"]), case["right"]) for case in cases]
    return items, [Item(text, gold, False) for text, gold in test_resource_bombs.TEXTS.values()]


def draw_plain_numbers(n: int) -> list[Item]:
    """Draws integers, decimals and fractions, half of them right, no pair twice."""
    rng, items = random.Random(0), []
    for _ in range(n):
        value, off = rng.randrange(1, 10**7), rng.randrange(1, 9)
        is_right = rng.random() < 0.5
        answer = value if is_right else value + off
        write = rng.choice(["{}", "{}.5", r"\frac{{{}}}{{7}}", "-{}", "{:,}"])
        items.append(Item(box_answer(write.format(answer)), write.format(value), is_right))
    return items


def judge_with_ours(item: Item) -> tuple[bool, str]:
    """Returns whether our reward pays an item, and its reason."""
    verdict = REWARD.judge(item.text, item.gold)
    return verdict.value == 1.0, verdict.reason


def judge_with_math_verify(item: Item) -> tuple[bool, str]:
    """Returns whether math-verify pays an item, without a reason."""
    return bool(verify(parse(f"${item.gold}$"), parse(item.text))), ""


def measure_verdict(pays: Callable[[Item], tuple[bool, str]], item: Item) -> Judged:
    """Judges an item and measures CPU and wall seconds."""
    children_before_s, own_cpu_s, wall_s = measure_children_cpu_s(), time.process_time(), time.monotonic()
    is_paid, reason = pays(item)
    own_cpu_s, wall_s = time.process_time() - own_cpu_s, time.monotonic() - wall_s
    return Judged(is_paid, reason, own_cpu_s + measure_children_cpu_s() - children_before_s, wall_s)


def measure_children_cpu_s() -> float:
    """Returns the CPU seconds of all descendants, with those they have waited for; they tick at 10 ms."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:  # its parent has its time from now on
            continue
    return total


def measure_cpu_s() -> float:
    """Returns the CPU seconds of this process and all descendants."""
    return time.process_time() + measure_children_cpu_s()


def print_report(name: str, items: list[Item], judged: list[Judged]) -> float:
    """Prints a line of figures; returns verdicts per CPU second."""
    paid = sum(verdict.is_paid and not item.right for item, verdict in zip(items, judged, strict=True))
    refused = sum(item.right and not verdict.is_paid for item, verdict in zip(items, judged, strict=True))
    public = [item.right == verdict.is_paid for item, verdict in zip(items, judged, strict=True) if item.is_public]
    spent = [verdict.cpu_s for verdict in judged]
    rate = len(items) / sum(spent)
    cuts = statistics.quantiles(spent, n=100)
    share = sum(verdict.reason in ("fallback", "time limit") for verdict in judged) / len(judged)
    print(
        f"  {name}: {paid + refused} errors ({paid} paid wrongly, {refused} refused)"
        + (f", {statistics.mean(public):.3f} of the public ones right" if public else "")
        + f"; {rate:,.0f} verdicts per CPU second, CPU p50 {1e3 * cuts[49]:.2f} ms, p99 {1e3 * cuts[98]:.1f} ms, "
        f"longest {max(verdict.wall_s for verdict in judged):.2f} s"
        + (
            f"; fallback {share:.1%} ({dict(Counter(verdict.reason for verdict in judged))})"
            if judged[0].reason
            else ""
        )
    )
    return rate


def print_bomb_comparison(bombs: list[Item]) -> None:
    """Judges the bombs with both sides and prints how many are right and how long they took."""
    ours = [measure_verdict(judge_with_ours, item) for item in bombs]
    theirs = [judge_in_killed_process(item) for item in bombs]
    for name, judged in (("ours", ours), ("math-verify", theirs)):
        wall_s = [verdict.wall_s for verdict in judged]
        n_killed = sum(verdict.reason == "killed" for verdict in judged)
        n_right = sum(
            item.right == verdict.is_paid and verdict.reason != "killed"
            for item, verdict in zip(bombs, judged, strict=True)
        )
        print(
            f"  {name} on {len(bombs)} bombs: {n_right} right, {sum(wall_s):.1f} s wall, longest {max(wall_s):.2f} s, "
            f"{n_killed} killed"
        )
    ratio = sum(verdict.wall_s for verdict in ours) / sum(verdict.wall_s for verdict in theirs)
    print(f"  ratio of the wall times: {ratio:.3f}")
    answer = r"\int_0^3 x\,dx"
    print(f"  after them an integral is judged: {judge_with_ours(Item(box_answer(answer), '9/2', True))}")


def judge_in_killed_process(item: Item) -> Judged:
    """Judges an item with math-verify in a process that is killed at KILL_S."""
    context = get_context("fork")
    read, write = context.Pipe(duplex=False)
    process = context.Process(target=lambda: write.send(judge_with_math_verify(item)[0]), daemon=True)
    start = time.monotonic()
    process.start()
    write.close()  # so that the end of a process that fails is seen
    has_reply = read.poll(KILL_S)
    try:
        is_paid = bool(has_reply and read.recv())
    except EOFError:
        is_paid = False
    wall_s = time.monotonic() - start
    process.kill()
    process.join()
    return Judged(is_paid, "" if has_reply else "killed", 0.0, wall_s)


if __name__ == "__main__":
    main()

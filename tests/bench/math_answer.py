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
    text: str
    gold: str
    right: bool
    is_public: bool = False


class Judged(NamedTuple):
    is_paid: bool
    reason: str
    cpu_s: float
    wall_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--numbers", type=int, default=20_000, help="plain numeric items for ours; math-verify gets 1 in 50"
    )
    parser.add_argument("--no-bombs", action="store_true")
    options = parser.parse_args()
    warm()
    items, bombs = shared_items() if CASES.is_file() else own_items()
    print(f"{len(items)} labelled items ({'shared cases' if CASES.is_file() else 'our own'})")
    ours = report("ours", items, [judge(ours_pays, item) for item in items])
    theirs = report("math-verify", items, [judge(theirs_pays, item) for item in items])
    print(f"  ratio of verdicts per CPU second: {ours / theirs:.1f}")
    numbers = plain_numbers(options.numbers)
    print(f"{len(numbers)} plain numbers, none twice")
    start = cpu_s()
    paid = [ours_pays(item)[0] for item in numbers]
    ours = len(numbers) / (cpu_s() - start)
    errors = sum(is_paid != item.right for is_paid, item in zip(paid, numbers, strict=True))
    print(f"  ours: {errors} errors, {ours:,.0f} verdicts per CPU second")
    theirs = report("math-verify", numbers[::50], [judge(theirs_pays, item) for item in numbers[::50]])
    print(f"  ratio: {ours / theirs:,.0f}")
    if not options.no_bombs:
        compare_bombs(bombs)


def warm() -> None:
    """Imports and the pool are paid for before anything is measured."""
    REWARD.warm()
    for answer, gold in ((r"\int_0^2 x\,dx", "2"), (r"\sin\frac{\pi}{8}", r"\cos\frac{3\pi}{8}"), ("x+1", "1+x")):
        ours_pays(Item(boxed(answer), gold, True))
        theirs_pays(Item(boxed(answer), gold, True))


def boxed(answer: str) -> str:
    return rf"The final answer is $\boxed{{{answer}}}$."


def shared_items() -> tuple[list[Item], list[Item]]:
    """The labelled main cases, and the bombs."""
    items: dict[bool, list[Item]] = {False: [], True: []}
    for case in map(json.loads, CASES.read_text("utf-8").splitlines()):
        if not case.get("inj"):
            text = case["pred"] if case["mode"] == "response" else boxed(case["pred"])
            is_public = case["source"] != "adversarial (own)"
            items[bool(case.get("hang"))].append(Item(text, case["gold"], case["should_match"], is_public))
    return items[False], items[True]


def own_items() -> tuple[list[Item], list[Item]]:
    cases = [case for case in test_labelled_pairs.CASES if case["right"] is not None]
    items = [Item(test_labelled_pairs.completion(case), str(case["gold"]), case["right"]) for case in cases]
    return items, [Item(text, gold, False) for text, gold in test_resource_bombs.TEXTS.values()]


def plain_numbers(n: int) -> list[Item]:
    """Integers, decimals and fractions, half of them right, no pair twice."""
    draw, items = random.Random(0), []
    for _ in range(n):
        value, off = draw.randrange(1, 10**7), draw.randrange(1, 9)
        is_right = draw.random() < 0.5
        said = value if is_right else value + off
        write = draw.choice(["{}", "{}.5", r"\frac{{{}}}{{7}}", "-{}", "{:,}"])
        items.append(Item(boxed(write.format(said)), write.format(value), is_right))
    return items


def ours_pays(item: Item) -> tuple[bool, str]:
    verdict = REWARD.judge(item.text, item.gold)
    return verdict.value == 1.0, verdict.reason


def theirs_pays(item: Item) -> tuple[bool, str]:
    return bool(verify(parse(f"${item.gold}$"), parse(item.text))), ""


def judge(pays: Callable[[Item], tuple[bool, str]], item: Item) -> Judged:
    before, own, wall = children_cpu_s(), time.process_time(), time.monotonic()
    is_paid, reason = pays(item)
    own, wall = time.process_time() - own, time.monotonic() - wall
    return Judged(is_paid, reason, own + children_cpu_s() - before, wall)


def children_cpu_s() -> float:
    """CPU seconds of all descendants, with those they have waited for; they tick at 10 ms."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:  # its parent has its time from now on
            continue
    return total


def cpu_s() -> float:
    return time.process_time() + children_cpu_s()


def report(name: str, items: list[Item], judged: list[Judged]) -> float:
    """Prints a line of figures; returns verdicts per CPU second."""
    paid = sum(one.is_paid and not item.right for item, one in zip(items, judged, strict=True))
    refused = sum(item.right and not one.is_paid for item, one in zip(items, judged, strict=True))
    public = [item.right == one.is_paid for item, one in zip(items, judged, strict=True) if item.is_public]
    spent = [one.cpu_s for one in judged]
    rate = len(items) / sum(spent)
    cuts = statistics.quantiles(spent, n=100)
    share = sum(one.reason in ("fallback", "time limit") for one in judged) / len(judged)
    print(
        f"  {name}: {paid + refused} errors ({paid} paid wrongly, {refused} refused)"
        + (f", {statistics.mean(public):.3f} of the public ones right" if public else "")
        + f"; {rate:,.0f} verdicts per CPU second, CPU p50 {1e3 * cuts[49]:.2f} ms, p99 {1e3 * cuts[98]:.1f} ms, "
        f"longest {max(one.wall_s for one in judged):.2f} s"
        + (f"; fallback {share:.1%} ({dict(Counter(one.reason for one in judged))})" if judged[0].reason else "")
    )
    return rate


def compare_bombs(bombs: list[Item]) -> None:
    ours = [judge(ours_pays, item) for item in bombs]
    theirs = [in_killed_process(item) for item in bombs]
    for name, judged in (("ours", ours), ("math-verify", theirs)):
        right = sum(
            item.right == one.is_paid and one.reason != "killed" for item, one in zip(bombs, judged, strict=True)
        )
        print(
            f"  {name} on {len(bombs)} bombs: {right} right, {sum(one.wall_s for one in judged):.1f} s wall, longest "
            f"{max(one.wall_s for one in judged):.2f} s, {sum(one.reason == 'killed' for one in judged)} killed"
        )
    print(f"  ratio of the wall times: {sum(one.wall_s for one in ours) / sum(one.wall_s for one in theirs):.3f}")
    answer = r"\int_0^3 x\,dx"
    print(f"  after them an integral is judged: {ours_pays(Item(boxed(answer), '9/2', True))}")


def in_killed_process(item: Item) -> Judged:
    context = get_context("fork")
    read, write = context.Pipe(duplex=False)
    process = context.Process(target=lambda: write.send(theirs_pays(item)[0]), daemon=True)
    start = time.monotonic()
    process.start()
    write.close()  # so that the end of a process that fails is seen
    said = read.poll(KILL_S)
    try:
        is_paid = bool(said and read.recv())
    except EOFError:
        is_paid = False
    wall_s = time.monotonic() - start
    process.kill()
    process.join()
    return Judged(is_paid, "" if said else "killed", 0.0, wall_s)


if __name__ == "__main__":
    main()

"""CPU seconds and memory of the near-duplicate finder: on questions, and on texts of one template, its worst case.

`questions` are those of GSM8K and MATH and copies in which every fourth word is another, of which few are near;
`template` is an instruction of 60 words before 16 of each text's own, so that a third of all pairs are candidates and
none is near.

    python tests/bench/near_duplicates.py [--texts 100000]
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from qwen_align.data_builders import NearDuplicates

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    n_texts = parser.parse_args().texts
    for texts in (questions, template):
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(texts, n_texts))
        process.start()
        process.join()


def measure(texts: Callable[[int], Iterator[str]], n_texts: int) -> None:
    finder, n_dropped = NearDuplicates().make_finder(), 0
    started = time.process_time()
    for number, text in enumerate(texts(n_texts)):
        n_dropped += finder.find_or_keep(f"{number}", text) is not None
    seconds = time.process_time() - started
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{texts.__name__:<10} {n_texts:,} texts, {n_dropped:,} dropped: {seconds:,.1f} CPU seconds, {gib:.2f} GiB")


def questions(n_texts: int) -> Iterator[str]:
    draw = Random(0)
    lines = (DATA / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["question"] for line in lines]
    found += [row["prompt"] for row in json.loads((DATA / "limr" / "math_8k.json").read_text(encoding="utf-8"))]
    words = " ".join(found).split()
    yield from found[:n_texts]
    for _ in range(n_texts - len(found)):
        copied = draw.choice(found).split()
        yield " ".join(draw.choice(words) if draw.random() < 0.25 else word for word in copied)


def template(n_texts: int) -> Iterator[str]:
    draw = Random(0)
    words = [f"word{number}" for number in range(5000)]
    common = " ".join(draw.choices(words, k=60))
    for _ in range(n_texts):
        yield f"{common} {' '.join(draw.choices(words, k=16))}"


if __name__ == "__main__":
    main()

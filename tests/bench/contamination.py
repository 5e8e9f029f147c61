"""Contamination rules on 60,000 rows with planted benchmark questions, and near duplicates among 100,000 rows.

Rows are GSM8K's training questions, MATH prompts, and copies of both with other numbers and words; planted are
questions of MATH-500 and of GSM8K's test set: verbatim, in capitals, with a clause in the middle, and paraphrased by
rule (synonyms, the last sentence first). Prints, for each rule, the recall of each kind and the precision, where
every row that is not planted counts as clean; `near copies` says how many of the rows so counted as false share at
least 0.75 of the *longer* text with the question that the rule named, so are repeats that the sources came with.

Then s1's own way and ours, each in a process of its own on the same lines: CPU seconds from text to verdicts, peak
memory of the process, and whether the verdicts are the same. Real data is needed (QWEN_ALIGN_TEST_DATA, else
../shared/data), and s1_ngram.py in the folder `bench` beside it.

    python tests/bench/contamination.py [--rows 60000] [--near-rows 100000]
"""

import argparse
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from qwen_align.data_builders.benchmark_questions import Question
from qwen_align.data_builders.contamination import Qwen25MathOverlap, Qwen25Overlap, S1Overlap
from qwen_align.data_builders.longest_common_subsequence import compute_lcs_length
from qwen_align.data_builders.near_duplicates import NearDuplicates
from qwen_align.data_builders.text_to_words import split_words

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))
BASELINE = DATA.parent / "bench" / "s1_ngram.py"
KINDS = ("verbatim", "capitals", "extra clause", "paraphrase")
CLAUSE = "as is well known to everyone who was there"
SYNONYMS = {
    "how many": "what number of", "how much": "what amount of", "find": "determine", "compute": "work out",
    "what is": "give", "if": "suppose", "has": "owns", "have": "own", "each": "every", "buys": "purchases",
    "gives": "hands", "total": "sum", "more": "additional", "the": "this", "there are": "we see", "per": "for each",
    "let": "say", "such that": "so that", "positive": "greater than zero", "value": "size", "and": "plus",
    "he": "this man", "she": "this woman", "they": "those people", "in": "inside", "of": "from", "a": "one",
    "to": "towards", "is": "equals", "for": "during", "on": "upon", "was": "had been", "that": "which",
    "with": "having",
}  # fmt: skip
_SYNONYM = re.compile(r"\b(" + "|".join(sorted(SYNONYMS, key=len, reverse=True)) + r")\b", re.IGNORECASE)


class Row(NamedTuple):
    text: str
    kind: str  # "" where it is not planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--near-rows", type=int, default=100_000)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    if options.child:
        child(*options.child)
        return
    for path in (DATA / "math500" / "test.jsonl", BASELINE):
        if not path.is_file():
            sys.exit(f"{path}: is missing; set QWEN_ALIGN_TEST_DATA to the folder with the real data")
    questions = benchmark()
    rows = mixed_rows(questions, options.rows)
    compare_rules(rows, questions)
    compare_with_s1(rows, questions)
    time_near_duplicates(options.near_rows)


def column(path: str, key: str) -> list[str]:
    with (DATA / path).open(encoding="utf-8") as lines:
        values = json.load(lines) if path.endswith(".json") else [json.loads(line) for line in lines]
    return [" ".join(value[key].split()) for value in values]


def benchmark() -> list[Question]:
    texts = {"math500": column("math500/test.jsonl", "problem"), "gsm8k": column("gsm8k/test.jsonl", "question")}
    return [Question(f"{name}:{n}", text) for name, some in texts.items() for n, text in enumerate(some, start=1)]


def sources() -> list[str]:
    return column("gsm8k/train.jsonl", "question") + column("limr/math_8k.json", "prompt")


def other_wording(text: str, vocabulary: list[str], draw: random.Random, share: float = 0.3) -> str:
    """The text with all its numbers, and a share of its words for words of other texts, replaced."""
    changed = [draw.choice(vocabulary) if draw.random() < share else word for word in text.split()]
    return re.sub(r"\d+", lambda _: str(draw.randrange(2, 10**3)), " ".join(changed))


def planted(text: str, kind: str) -> str:
    if kind == "capitals":
        return text.upper()
    if kind == "extra clause":
        half = text.split()
        return " ".join([*half[: len(half) // 2], CLAUSE, *half[len(half) // 2 :]])
    if kind == "paraphrase":
        *before, last = re.split(r"(?<=[.?!]) ", text)
        return _SYNONYM.sub(lambda found: SYNONYMS[found[0].lower()], " ".join([last, *before]))
    return text


def mixed_rows(questions: list[Question], n_rows: int) -> list[Row]:
    """Every benchmark question planted once, the kinds in turn, among real rows and changed copies of them."""
    draw = random.Random(0)
    rows = [Row(planted(one.text, KINDS[n % len(KINDS)]), KINDS[n % len(KINDS)]) for n, one in enumerate(questions)]
    real = sources()
    vocabulary = [word for text in real for word in text.split()]
    rows += [Row(text, "") for text in real]
    rows += [Row(other_wording(draw.choice(real), vocabulary, draw), "") for _ in range(n_rows - len(rows))]
    draw.shuffle(rows)
    return rows[:n_rows]


def compare_rules(rows: list[Row], questions: list[Question]) -> None:
    tokenizer = str(DATA / "qwen3_tokenizer" / "tokenizer.json")
    rules = {
        "s1": S1Overlap(against="benchmark"),
        "qwen2.5_math": Qwen25MathOverlap(against="benchmark"),
        "qwen2.5 (words)": Qwen25Overlap(against="benchmark"),
        "qwen2.5 (Qwen3 tokens)": Qwen25Overlap.model_validate({"against": "benchmark", "tokenizer": tokenizer}),
    }
    asked = {question.id: split_words(question.text) for question in questions}
    n_planted = {kind: sum(row.kind == kind for row in rows) for kind in KINDS}
    print(f"{len(rows):,} rows, planted: {n_planted}")
    print(f"{'rule':<24}" + "".join(f"{kind:>14}" for kind in KINDS) + "  precision  near copies of the false  CPU s")
    for name, rule in rules.items():
        start = time.process_time()
        find = rule.make_finder(questions)
        found = [(row, overlap) for row in rows if (overlap := find(row.text))]
        seconds = time.process_time() - start
        recalls = [sum(row.kind == kind for row, _ in found) / n_planted[kind] for kind in KINDS]
        false = [(row, overlap) for row, overlap in found if not row.kind]
        near = sum(share_of_longer(split_words(row.text), asked[overlap.question]) >= 0.75 for row, overlap in false)
        precision = 1 - len(false) / len(found)
        print(
            f"{name:<24}"
            + "".join(f"{recall:>14.3f}" for recall in recalls)
            + f"{precision:>11.3f}  {near:>8} of {len(false):<13} {seconds:>6.1f}"
        )


def share_of_longer(one: list[str], other: list[str]) -> float:
    return compute_lcs_length(one, other) / max(len(one), len(other), 1)


class Run(NamedTuple):
    seconds: float
    peak_mib: float
    found: list[int]


def compare_with_s1(rows: list[Row], questions: list[Question]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder, "train.txt"), Path(folder, "test.txt")
        train.write_text("".join(row.text + "\n" for row in rows), encoding="utf-8")
        test.write_text("".join(question.text + "\n" for question in questions), encoding="utf-8")
        theirs, ours = run("s1", train, test), run("ours", train, test)
    print(f"s1's way {theirs.seconds:6.2f} CPU s {theirs.peak_mib:6.0f} MiB {len(theirs.found):,} contaminated")
    print(f"ours     {ours.seconds:6.2f} CPU s {ours.peak_mib:6.0f} MiB {len(ours.found):,} contaminated")
    print(
        f"ratio    {theirs.seconds / ours.seconds:6.1f} in speed, {ours.peak_mib / theirs.peak_mib:.2f} of the memory, "
        f"verdicts {'the same' if ours.found == theirs.found else 'DIFFERENT'}"
    )


def run(which: str, train: Path, test: Path) -> Run:
    line = [sys.executable, __file__, "--child", which, str(train), str(test)]
    return Run(*json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout))


def child(which: str, train: str, test: str) -> None:
    seconds, found = {"s1": s1_way, "ours": our_way}[which](train, test)
    print(json.dumps(Run(seconds, peak_mib(), found)))


def peak_mib() -> float:
    """The largest resident size so far; getrusage would count what the parent had when it started this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def s1_way(train: str, test: str) -> tuple[float, list[int]]:
    spec = importlib.util.spec_from_file_location("s1_ngram", BASELINE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    contaminated: Callable[[list[str], list[str]], set[int]] = module.contaminated
    start = time.process_time()
    texts = [Path(path).read_text(encoding="utf-8").splitlines() for path in (train, test)]
    found = sorted(contaminated(*texts))
    return time.process_time() - start, found


def our_way(train: str, test: str) -> tuple[float, list[int]]:
    start = time.process_time()
    with open(train, encoding="utf-8") as rows, open(test, encoding="utf-8") as asked:
        find = S1Overlap(against="benchmark").make_finder([Question(str(n), line) for n, line in enumerate(asked)])
        found = [n for n, line in enumerate(rows) if find(line)]
    return time.process_time() - start, found


def time_near_duplicates(n_rows: int) -> None:
    """Real rows and copies with 0 to 60 % of the words changed."""
    draw = random.Random(1)
    real = sources()
    vocabulary = [word for text in real for word in text.split()]
    shares = (0.01, 0.1, 0.4, 0.6)
    copies = n_rows - len(real)
    rows = real + [other_wording(draw.choice(real), vocabulary, draw, draw.choice(shares)) for _ in range(copies)]
    before = peak_mib()
    start = time.process_time()
    finder = NearDuplicates().make_finder()
    dropped = sum(finder.find_or_keep(str(n), text) is not None for n, text in enumerate(rows))
    seconds = time.process_time() - start
    grown = peak_mib() - before
    print(
        f"near duplicates: {dropped:,} of {len(rows):,} rows in {seconds:.1f} CPU s, {grown:,.0f} MiB more at the peak"
    )


if __name__ == "__main__":
    main()

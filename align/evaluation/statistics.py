"""Computes accuracy, pass@k, maj@k, shares, lengths and paired tests from an evaluation's samples.

The question is the unit: samples of one question are not independent, so errors are taken over question means.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SampleScore(NamedTuple):
    """The score of one judged completion: its value, answer, length and how it ended.

    A value of 1 or more is right. `answer` is its answer in normal form, if it has one.

    `obeyed` says whether it thought, or did not, as its mode asked; None where nothing was asked.
    """

    value: float
    stopped: bool
    obeyed: bool | None
    n_tokens: int
    answer: str | None

    @property
    def is_right(self) -> bool:
        """Returns whether the completion is right: its value is 1 or more."""
        return self.value >= 1


class Estimate(NamedTuple):
    """A mean over questions with its standard error.

    The error is None for a single question.
    """

    mean: float
    se: float | None


class Summary(NamedTuple):
    """The summary statistics of an evaluation: accuracy, pass@k, maj@k, shares and token counts.

    Shares and token counts are means over questions of each question's mean. `n_tokens_right` and `n_tokens_wrong` are
    over samples, None where there are none.
    """

    n_questions: int
    n_samples: int
    k: int
    value: Estimate
    pass_at_k: Estimate
    maj_at_k: Estimate
    answered_share: float
    stopped_share: float
    obeyed_share: float | None
    n_tokens: float
    n_tokens_right: float | None
    n_tokens_wrong: float | None


class PairedTest(NamedTuple):
    """The result of a paired permutation test between two models.

    `difference` is the mean of b - a over questions; `p` is two-sided.
    """

    difference: float
    se: float | None
    p: float
    n_questions: int


def summarise_samples(questions: Mapping[str, Sequence[SampleScore]], k: int) -> Summary:
    """Computes the summary statistics over questions.

    Raises ValueError where a question has fewer than `k` samples.
    """
    if not questions:
        raise ValueError("no questions to summarise; an evaluation needs at least one")
    for name, samples in questions.items():
        if not 1 <= k <= len(samples):
            raise ValueError(f"question '{name}' has {len(samples)} samples; k is {k}, which must be from 1 to that")
    groups = list(questions.values())
    all_samples = [sample for samples in groups for sample in samples]
    obeyed = [[s.obeyed for s in samples if s.obeyed is not None] for samples in groups]
    obeyed = [flags for flags in obeyed if flags]
    return Summary(
        n_questions=len(groups),
        n_samples=len(all_samples),
        k=k,
        value=estimate_mean(compute_question_means(questions).values()),
        pass_at_k=estimate_mean(
            compute_pass_at_k(len(samples), sum(s.is_right for s in samples), k) for samples in groups
        ),
        maj_at_k=estimate_mean(compute_maj_at_k(samples, k) for samples in groups),
        answered_share=_mean(_mean(s.answer is not None for s in samples) for samples in groups),
        stopped_share=_mean(_mean(s.stopped for s in samples) for samples in groups),
        obeyed_share=_mean(_mean(flags) for flags in obeyed) if obeyed else None,
        n_tokens=_mean(_mean(s.n_tokens for s in samples) for samples in groups),
        n_tokens_right=_mean_or_none(s.n_tokens for s in all_samples if s.is_right),
        n_tokens_wrong=_mean_or_none(s.n_tokens for s in all_samples if not s.is_right),
    )


def estimate_best_of(questions: Mapping[str, Sequence[SampleScore]], scores: Mapping[str, Sequence[float]]) -> Estimate:
    """Estimates the mean value of each question's highest-scored sample.

    Of equal scores the first counts.
    """
    return estimate_mean(
        samples[max(range(len(samples)), key=lambda index: scores[name][index])].value
        for name, samples in questions.items()
    )


def compute_question_means(questions: Mapping[str, Sequence[SampleScore]]) -> dict[str, float]:
    """Returns the mean value of each question's samples.

    `run_paired_test` takes these.
    """
    return {name: _mean(sample.value for sample in samples) for name, samples in questions.items()}


def estimate_mean(per_question: Iterable[float]) -> Estimate:
    """Returns the mean and standard error of one number per question.

    The error is the sample deviation over sqrt(n).
    """
    values = np.fromiter(per_question, dtype=np.float64)
    se = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Estimate(float(values.mean()), se)


def compute_pass_at_k(n: int, n_right: int, k: int) -> float:
    """Returns the probability that k of n samples, drawn without replacement, include a right one.

    arXiv:2107.03374.
    """
    return 1 - math.comb(n - n_right, k) / math.comb(n, k)


def compute_maj_at_k(samples: Sequence[SampleScore], k: int) -> float:
    """Returns the expected value of the majority answer among k samples drawn without replacement.

    Samples without an answer do not vote; if none votes the value is 0. Answers that tie for first place are
    chosen from with equal chance. Where samples of one answer differ in value, their mean counts.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.answer is not None:
            values[sample.answer].append(sample.value)
    counts = {answer: len(same) for answer, same in values.items()}
    n_silent = len(samples) - sum(counts.values())
    mean_values = {answer: _mean(same) for answer, same in values.items()}
    expected = sum(
        mean_values[answer] * _count_winning_subsets(answer, counts, n_silent, k)
        for answer in counts
        if mean_values[answer]
    )
    return expected / math.comb(len(samples), k)


def _count_winning_subsets(answer: str, counts: Mapping[str, int], n_silent: int, k: int) -> float:
    """Counts the subsets of k samples in which `answer` is the most frequent answer.

    A tie of t answers counts 1/t.
    """
    rivals = [count for other, count in counts.items() if other != answer]
    ways = 0.0
    for votes in range(1, min(counts[answer], k) + 1):
        # Subsets of the rivals seen so far, by their size and by how many of them have just as many votes.
        subsets = np.zeros((k - votes + 1, k // votes + 1))
        subsets[0, 0] = 1.0
        for count in rivals:
            subsets = _add_rival_answer(subsets, count, votes)
        shared = subsets @ (1 / np.arange(1, subsets.shape[1] + 1))
        silent = [math.comb(n_silent, k - votes - size) for size in range(k - votes + 1)]
        ways += math.comb(counts[answer], votes) * float(shared @ np.array(silent, dtype=np.float64))
    return ways


def _add_rival_answer(subsets: NDArray[np.float64], count: int, votes: int) -> NDArray[np.float64]:
    """Adds one more rival answer with `count` samples to the table of subsets and returns it.

    Of the rival's samples at most `votes` are drawn.
    """
    size = subsets.shape[0]
    after = subsets.copy()
    for drawn in range(1, min(count, votes, size - 1) + 1):
        ways = math.comb(count, drawn)
        if drawn < votes:
            after[drawn:] += ways * subsets[: size - drawn]
        else:
            after[drawn:, 1:] += ways * subsets[: size - drawn, :-1]
    return after


def run_paired_test(
    a: Mapping[str, float], b: Mapping[str, float], *, seed: int = 0, n_permutations: int = 10_000
) -> PairedTest:
    """Tests whether b differs from a on the same questions, by a paired permutation test.

    Each permutation exchanges a and b within questions. All 2**n exchanges where that is no more than `n_permutations`,
    so p is exact; else as many random ones, the observed one counted among them, so that p is never 0. Raises
    ValueError if the questions are not the same.
    """
    unmatched = sorted(a.keys() ^ b.keys())
    if unmatched or not a:
        raise ValueError(
            f"a paired test needs the same questions twice; {len(unmatched)} are in one only: {unmatched[:3]}"
        )
    differences = np.array([b[name] - a[name] for name in sorted(a)])
    n = len(differences)
    exact = n < 63 and 2**n <= n_permutations
    # Sums of thirds and the like: what is equal in arithmetic must be counted as equal here.
    least = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    draw = np.random.default_rng(seed)
    hits = 0
    n_drawn = 2**n if exact else n_permutations
    rows = max(1, 4_000_000 // n)  # 32 MB of float64 at a time
    for start in range(0, n_drawn, rows):
        size = min(rows, n_drawn - start)
        if exact:
            flips = np.arange(start, start + size)[:, None] >> np.arange(n) & 1
        else:
            flips = draw.integers(0, 2, size=(size, n), dtype=np.int8)
        hits += int((np.abs((1.0 - 2.0 * flips) @ differences) >= least).sum())
    p = hits / n_drawn if exact else (hits + 1) / (n_drawn + 1)
    mean, se = estimate_mean(differences)
    return PairedTest(mean, se, p, n)


def _mean(numbers: Iterable[float]) -> float:
    """Returns the mean of at least one number, summed without rounding error."""
    values = list(numbers)
    return math.fsum(values) / len(values)


def _mean_or_none(numbers: Iterable[float]) -> float | None:
    """Returns the mean of the numbers.

    Returns None if there are none.
    """
    values = list(numbers)
    return _mean(values) if values else None

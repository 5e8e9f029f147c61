"""Computes accuracy, pass@k, maj@k, shares, lengths and paired tests from an evaluation's samples.

A sample is right if its reward is 1 or more; accuracy, pass@k and maj@k all count right samples, and the mean reward is
a figure of its own. A sample without a verdict is neither right nor wrong: these figures are of the samples with one,
and of the questions that have such samples.

The question is the unit: samples of one question are not independent, so errors are taken over question means.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen_align.reward.verdict import is_right_value


class SampleScore(NamedTuple):
    """The score of one judged completion: its value, answer, length and how it ended.

    `value` is its reward, None without a verdict. `answer` is its answer in normal form, if it has one.

    `obeyed` says whether it thought, or did not, as its mode asked; None where nothing was asked.
    """

    value: float | None
    stopped: bool
    obeyed: bool | None
    n_tokens: int
    answer: str | None

    @property
    def is_right(self) -> bool | None:
        """Returns whether the completion is right. Returns None without a verdict."""
        return None if self.value is None else is_right_value(self.value)


class Estimate(NamedTuple):
    """A mean over questions with its standard error.

    The error is None for a single question.
    """

    mean: float
    se: float | None


class Summary(NamedTuple):
    """The summary statistics of an evaluation: accuracy, mean reward, pass@k, maj@k, shares and token counts.

    Shares and token counts are means over questions of each question's mean. `n_tokens_right` and `n_tokens_wrong` are
    over samples, None where there are none. `n_no_verdict` of the samples have no verdict.
    """

    n_questions: int
    n_samples: int
    n_no_verdict: int
    k: int
    accuracy: Estimate
    mean_reward: Estimate
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

    Of a question with fewer than `k` verdicts pass@k and maj@k are of those it has. Raises ValueError where a question
    has fewer than `k` samples, and where no sample has a verdict.
    """
    for name, samples in questions.items():
        if not 1 <= k <= len(samples):
            raise ValueError(f"question '{name}' has {len(samples)} samples; k is {k}, which must be from 1 to that")
    groups = list(questions.values())
    all_samples = [sample for samples in groups for sample in samples]
    judged = list(select_judged(questions).values())
    if not judged:
        raise ValueError("no question has a verdict; an evaluation needs at least one")
    obeyed = [[s.obeyed for s in samples if s.obeyed is not None] for samples in groups]
    obeyed = [flags for flags in obeyed if flags]
    return Summary(
        n_questions=len(groups),
        n_samples=len(all_samples),
        n_no_verdict=len(all_samples) - sum(len(samples) for samples in judged),
        k=k,
        accuracy=estimate_mean(map(_compute_right_share, judged)),
        mean_reward=estimate_mean(_mean(s.value for s in samples if s.value is not None) for samples in judged),
        pass_at_k=estimate_mean(
            compute_pass_at_k(len(samples), sum(s.is_right is True for s in samples), min(k, len(samples)))
            for samples in judged
        ),
        maj_at_k=estimate_mean(compute_maj_at_k(samples, min(k, len(samples))) for samples in judged),
        answered_share=_mean(_mean(s.answer is not None for s in samples) for samples in groups),
        stopped_share=_mean(_mean(s.stopped for s in samples) for samples in groups),
        obeyed_share=_mean(_mean(flags) for flags in obeyed) if obeyed else None,
        n_tokens=_mean(_mean(s.n_tokens for s in samples) for samples in groups),
        n_tokens_right=_mean_or_none(s.n_tokens for s in all_samples if s.is_right),
        n_tokens_wrong=_mean_or_none(s.n_tokens for s in all_samples if s.is_right is False),
    )


def estimate_best_of(questions: Mapping[str, Sequence[SampleScore]], scores: Mapping[str, Sequence[float]]) -> Estimate:
    """Estimates how often each question's highest-scored sample is right. All samples have a verdict.

    Of equal scores the first counts.
    """
    return estimate_mean(
        float(samples[max(range(len(samples)), key=lambda index: scores[name][index])].is_right is True)
        for name, samples in questions.items()
    )


def select_judged(questions: Mapping[str, Sequence[SampleScore]]) -> dict[str, list[SampleScore]]:
    """Returns each question's samples that have a verdict, without the questions that have none."""
    judged = {name: [s for s in samples if s.value is not None] for name, samples in questions.items()}
    return {name: samples for name, samples in judged.items() if samples}


def compute_question_means(questions: Mapping[str, Sequence[SampleScore]]) -> dict[str, float | None]:
    """Returns the share of right samples of each question, None for a question without a verdict.

    `run_paired_test` takes those of the questions that two models have verdicts of.
    """
    judged = select_judged(questions)
    return {name: _compute_right_share(judged[name]) if name in judged else None for name in questions}


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
    """Returns how often the majority answer among k samples is right, which are drawn without replacement.

    Samples without an answer do not vote; if none votes the answer is wrong. Answers that tie for first place are
    chosen from with equal chance. Where samples of one answer are right and wrong, their share of right ones counts.
    """
    same_answer: dict[str, list[SampleScore]] = defaultdict(list)
    for sample in samples:
        if sample.answer is not None:
            same_answer[sample.answer].append(sample)
    counts = {answer: len(same) for answer, same in same_answer.items()}
    n_silent = len(samples) - sum(counts.values())
    right_shares = {answer: _compute_right_share(same) for answer, same in same_answer.items()}
    expected = sum(
        right_shares[answer] * _count_winning_subsets(answer, counts, n_silent, k)
        for answer in counts
        if right_shares[answer]
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


def _compute_right_share(samples: Sequence[SampleScore]) -> float:
    """Returns the share of right samples among those of a question, all of which have a verdict."""
    return _mean(sample.is_right is True for sample in samples)


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

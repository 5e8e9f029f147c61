import itertools
import math
import random
import statistics
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from qwen_align.align.evaluation.statistics import (
    SampleScore,
    compute_maj_at_k,
    compute_pass_at_k,
    compute_question_means,
    estimate_best_of,
    estimate_mean,
    run_paired_test,
    summarise_samples,
)


def score(value=1.0, *, answer="4", stopped=True, obeyed=True, n_tokens=10):
    return SampleScore(value, stopped, obeyed, n_tokens, answer)


def answers(text, *, right="a"):
    """One sample a letter; '-' has no answer."""
    return [score(float(letter == right), answer=None if letter == "-" else letter) for letter in text]


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for n_right, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * n_right + [False] * (n - n_right), k))
        assert compute_pass_at_k(n, n_right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_grows_with_k_and_with_right_samples():
    by_k = [compute_pass_at_k(16, 3, k) for k in range(1, 17)]
    assert by_k == sorted(by_k)
    assert by_k[0] == pytest.approx(3 / 16)
    by_right = [compute_pass_at_k(16, n_right, 4) for n_right in range(17)]
    assert by_right == sorted(by_right)
    assert (by_right[0], by_right[-1]) == (0, 1)


def majority_by_enumeration(samples, k):
    """Every subset, every tie, in exact arithmetic."""
    total = Fraction(0)
    subsets = list(itertools.combinations(samples, k))
    worth = {}
    for answer in {s.answer for s in samples}:
        same = [Fraction(s.value >= 1) for s in samples if s.answer == answer]
        worth[answer] = sum(same) / len(same)
    for subset in subsets:
        votes = Counter(s.answer for s in subset if s.answer is not None)
        if votes:
            first = [answer for answer, n in votes.items() if n == max(votes.values())]
            total += sum(worth[answer] for answer in first) / len(first)
    return float(total / len(subsets))


@pytest.mark.parametrize(
    "text", ["a", "b", "-", "aab", "ab", "abc", "aabbc-", "a----", "abcdefgh", "aabbccdd", "aaabbb--c", "-bbaaccc"]
)
def test_maj_at_k_is_exact(text):
    samples = answers(text)
    for k in range(1, len(text) + 1):
        assert compute_maj_at_k(samples, k) == pytest.approx(majority_by_enumeration(samples, k), abs=1e-12)


def test_maj_at_k_is_exact_with_two_right_answers_and_uneven_values():
    draw = random.Random(0)
    for _ in range(40):
        samples = [
            score(draw.choice([0.0, 0.25, 1.0]), answer=draw.choice(["a", "b", "c", "d", None])) for _ in range(8)
        ]
        for k in (1, 2, 3, 5, 8):
            assert compute_maj_at_k(samples, k) == pytest.approx(majority_by_enumeration(samples, k), abs=1e-12)


def test_maj_at_1_is_the_mean_of_answers_and_ties_are_shared():
    assert compute_maj_at_k(answers("aabc"), 1) == pytest.approx(0.5)
    assert compute_maj_at_k(answers("ab"), 2) == pytest.approx(0.5)
    assert compute_maj_at_k(answers("abc"), 3) == pytest.approx(1 / 3)
    assert compute_maj_at_k(answers("a--"), 3) == 1.0, "those without an answer do not vote"
    assert compute_maj_at_k(answers("---"), 2) == 0.0


def test_voting_helps_the_frequent_answer_and_hurts_the_rare_one():
    frequent, rare = answers("aaaaabbcde"), answers("bbbbbaacde")
    assert compute_maj_at_k(frequent, 1) < compute_maj_at_k(frequent, 3) < compute_maj_at_k(frequent, 9)
    assert compute_maj_at_k(rare, 1) > compute_maj_at_k(rare, 3) > compute_maj_at_k(rare, 9)


def test_maj_at_k_of_64_samples_agrees_with_drawn_subsets():
    text = "a" * 14 + "b" * 12 + "c" * 9 + "-" * 9 + "".join(chr(100 + i) for i in range(20))
    samples = answers(text)
    draw = np.random.default_rng(0)
    label = np.array([ord(letter) - 96 if letter != "-" else 0 for letter in text])
    won = []
    for _ in range(20_000):
        votes = np.bincount(draw.permutation(label)[:16], minlength=30)
        votes[0] = 0
        won.append((votes[1] == votes.max()) / (votes == votes.max()).sum())
    assert compute_maj_at_k(samples, 16) == pytest.approx(np.mean(won), abs=4 * np.std(won) / math.sqrt(len(won)))


def test_the_error_is_over_questions_not_over_samples():
    per_question = [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    questions = {f"q{i}": [score(value) for value in values] for i, values in enumerate(per_question)}
    summary = summarise_samples(questions, k=1)
    assert summary.accuracy.mean == pytest.approx(0.5)
    assert summary.accuracy.se == pytest.approx(statistics.stdev([1.0, 0.0, 0.5]) / math.sqrt(3))
    twice = summarise_samples({name: samples * 2 for name, samples in questions.items()}, k=1)
    assert twice.accuracy == summary.accuracy, "the same samples again tell nothing new"


def test_the_error_covers_the_truth_as_often_as_it_says():
    """Questions of different difficulty, 4 samples each: the 95 % interval must hold the mean about 95 % of times."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        means = draw.binomial(4, draw.beta(0.5, 0.5, size=60)) / 4
        mean, se = estimate_mean(means)
        held += abs(mean - 0.5) < 2.0 * se  # t(59) at 97.5 % is 2.00
    assert 0.93 < held / 2000 < 0.97


def test_one_question_has_no_error():
    assert estimate_mean([0.25]) == (0.25, None)


def test_summary_counts_what_it_says():
    questions = {
        "q0": [score(1.0, n_tokens=10), score(0.0, answer=None, stopped=False, n_tokens=40)],
        "q1": [score(0.5, answer="5", obeyed=False, n_tokens=20), score(0.0, answer="6", obeyed=None, n_tokens=30)],
    }
    summary = summarise_samples(questions, k=2)
    assert (summary.n_questions, summary.n_samples, summary.n_no_verdict, summary.k) == (2, 4, 0, 2)
    assert (summary.accuracy.mean, summary.mean_reward.mean) == (0.25, 0.375)
    assert summary.pass_at_k.mean == pytest.approx(0.5), "a value of 0.5 is not right"
    assert summary.maj_at_k.mean == pytest.approx((1.0 + 0.0) / 2)
    assert summary.answered_share == pytest.approx(0.75)
    assert summary.stopped_share == pytest.approx(0.75)
    assert summary.obeyed_share == pytest.approx(0.5)
    assert summary.n_tokens == pytest.approx(25)
    assert summary.n_tokens_right == pytest.approx(10)
    assert summary.n_tokens_wrong == pytest.approx(30)
    assert compute_question_means(questions) == {"q0": 0.5, "q1": 0.0}


def test_what_was_never_asked_has_no_share():
    summary = summarise_samples({"q": [score(0.0, obeyed=None)]}, k=1)
    assert summary.obeyed_share is None
    assert summary.n_tokens_right is None


def test_a_question_counts_once_however_many_samples_it_has():
    questions = {"easy": [score(1.0)] * 9, "hard": [score(0.0, answer="5")]}
    summary = summarise_samples(questions, k=1)
    assert summary.accuracy.mean == summary.pass_at_k.mean == summary.maj_at_k.mean == pytest.approx(0.5)


def test_a_better_model_scores_higher_everywhere():
    draw = random.Random(1)

    def evaluation(skill):
        return {f"q{i}": answers(draw.choices("abc-", [skill, 0.4, 0.4, 0.2], k=8)) for i in range(200)}

    worse, better = summarise_samples(evaluation(0.4), k=4), summarise_samples(evaluation(1.2), k=4)
    assert better.accuracy.mean > worse.accuracy.mean + 3 * worse.accuracy.se
    assert better.pass_at_k.mean > worse.pass_at_k.mean
    assert better.maj_at_k.mean > worse.maj_at_k.mean


@pytest.mark.parametrize("k", [0, 3])
def test_k_beyond_the_samples_is_refused_naming_the_question(k):
    with pytest.raises(ValueError, match=r"question 'few' has 2 samples; k is"):
        summarise_samples({"few": [score(), score()]}, k=k)


@pytest.mark.parametrize("questions", [{}, {"q": [score(None)]}])
def test_no_verdicts_are_refused(questions):
    with pytest.raises(ValueError, match="no question has a verdict"):
        summarise_samples(questions, k=1)


@pytest.mark.parametrize("value", [0.5, 0.999])
def test_what_is_not_right_is_right_nowhere(value):
    """All judged 0.5: no accuracy, no pass@k, no maj@k and no best of k, and a mean reward of 0.5."""
    questions = {name: [score(value), score(value)] for name in "ab"}
    summary = summarise_samples(questions, k=2)
    best = estimate_best_of(questions, {name: [0.1, 0.2] for name in "ab"})
    assert summary.accuracy.mean == summary.pass_at_k.mean == summary.maj_at_k.mean == best.mean == 0.0
    assert summary.mean_reward.mean == pytest.approx(value)
    assert (summary.n_tokens_right, summary.n_tokens_wrong) == (None, 10)


def test_with_one_sample_a_question_every_measure_is_the_accuracy():
    draw = random.Random(3)
    questions = {f"q{n}": [score(draw.choice([0.0, 0.5, 1.0, None]))] for n in range(60)}
    summary = summarise_samples(questions, k=1)
    known = [samples[0].value for samples in questions.values() if samples[0].value is not None]
    assert 0 < len(known) < 60
    right = sum(value == 1.0 for value in known) / len(known)
    assert summary.accuracy.mean == summary.pass_at_k.mean == summary.maj_at_k.mean == pytest.approx(right)
    assert summary.mean_reward.mean == pytest.approx(sum(known) / len(known))
    assert (summary.n_questions, summary.n_no_verdict) == (60, 60 - len(known))


def test_a_missing_verdict_is_neither_right_nor_wrong():
    """The figures are those of the same samples without it."""
    whole = {"a": [score(1.0), score(0.0, answer="5")], "b": [score(0.0), score(0.5)], "c": [score(1.0), score(1.0)]}
    holed = {
        "a": [*whole["a"], score(None, answer="5", stopped=False)],
        "none": [score(None)] * 3,
        "b": [score(None), *whole["b"]],
        "c": [*whole["c"], score(None)],
    }
    found, expected = summarise_samples(holed, k=3), summarise_samples(whole, k=2)
    for name in ("accuracy", "mean_reward", "pass_at_k", "maj_at_k", "n_tokens_right", "n_tokens_wrong"):
        assert getattr(found, name) == getattr(expected, name), name
    assert (found.n_questions, found.n_samples, found.n_no_verdict) == (4, 12, 6)
    assert found.stopped_share == pytest.approx((2 / 3 + 1 + 1 + 1) / 4), "how it ended is known without a verdict"
    assert compute_question_means(holed) == {"a": 0.5, "none": None, "b": 0.0, "c": 1.0}


def p_by_enumeration(differences):
    observed = abs(sum(differences))
    flipped = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed for total in flipped) / len(flipped)


def as_pair(differences):
    return {f"q{i}": 0.0 for i in range(len(differences))}, {f"q{i}": float(d) for i, d in enumerate(differences)}


@pytest.mark.parametrize("denominator", [1, 3, 7])
def test_the_paired_test_is_exact_for_few_questions(denominator):
    draw = random.Random(denominator)
    for n in (1, 2, 5, 10):
        differences = [Fraction(draw.randint(-denominator, denominator), denominator) for _ in range(n)]
        assert run_paired_test(*as_pair(differences)).p == p_by_enumeration(differences)


def test_the_drawn_test_agrees_with_the_exact_one():
    differences = [0.5, 0.25, -0.25, 0.5, 0.0, 0.25, -0.5, 0.75, 0.25, 0.5, 0.25, -0.25]
    exact = p_by_enumeration(differences)
    drawn = run_paired_test(*as_pair(differences), n_permutations=4000).p
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))
    assert drawn == run_paired_test(*as_pair(differences), n_permutations=4000).p
    assert drawn != run_paired_test(*as_pair(differences), n_permutations=4000, seed=1).p


def test_a_pair_without_difference_is_no_evidence_and_a_clear_one_is_strong():
    same = as_pair([0.0] * 300)
    assert run_paired_test(*same).p == 1.0
    a, b = as_pair([0.25] * 200 + [-0.25] * 100)
    better = run_paired_test(a, b)
    assert better.p == pytest.approx(1 / 10_001)
    assert better.difference == pytest.approx(25 / 300)
    assert run_paired_test(b, a).difference == -better.difference
    assert run_paired_test(b, a).p == better.p
    assert better.se == pytest.approx(statistics.stdev([0.25] * 200 + [-0.25] * 100) / math.sqrt(300))


def test_p_is_uniform_when_nothing_differs():
    draw = np.random.default_rng(0)
    p = [run_paired_test(*as_pair(draw.normal(size=40)), n_permutations=199, seed=i).p for i in range(400)]
    assert sum(value <= 0.1 for value in p) == pytest.approx(40, abs=4 * math.sqrt(40 * 0.9))


def test_a_paired_test_on_other_questions_is_refused():
    with pytest.raises(ValueError, match="2 are in one only: \\['x', 'y'\\]"):
        run_paired_test({"q": 1.0, "x": 1.0}, {"q": 1.0, "y": 0.0})


def test_best_of_takes_the_highest_score_of_each_question() -> None:
    def sample(value: float) -> SampleScore:
        return SampleScore(value, stopped=True, obeyed=None, n_tokens=1, answer=None)

    questions = {"a": [sample(0.0), sample(1.0)], "b": [sample(1.0), sample(0.0)], "c": [sample(0.0), sample(1.0)]}
    found = estimate_best_of(questions, {"a": [0.1, 0.9], "b": [-3.0, -2.0], "c": [5.0, 5.0]})
    assert found.mean == pytest.approx(1 / 3)  # of equal scores the first
    assert found.se == pytest.approx(1 / 3)

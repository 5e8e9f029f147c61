"""Draws rows domain by domain with long ones preferred, as s1 does, on numpy's RandomState stream."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import fsum, ldexp
from random import Random
from typing import NamedTuple

from qwen_align.align.errors import DataError


class Candidate(NamedTuple):
    """A row that can be drawn, with its domain and its length."""

    id: str
    domain: str
    length: int


def draw_by_domain(
    candidates: Sequence[Candidate],
    chosen: Mapping[str, str],
    *,
    n: int,
    uniform_until: int | None,
    weights: Mapping[str, int],
    random: Random,
) -> dict[str, str]:
    """Draws rows domain by domain until `n` are chosen, and returns how each was chosen, by row id.

    Those in `chosen` come first.

    A domain is drawn, all alike until `uniform_until` rows are chosen and by `weights` from then on (None: alike to the
    end); then a row of it, one rank down in length halving its odds. Rows chosen before can be drawn once, in vain,
    as in s1's notebook. Raises DataError when the domains are used up.
    """
    chosen = dict(chosen)
    domains: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        domains.setdefault(candidate.domain, []).append(candidate)
    names, weights = sorted(domains), dict(weights)
    while len(chosen) < n:
        is_uniform = uniform_until is None or len(chosen) < uniform_until
        if not (names if is_uniform else weights):
            kind = "domains" if is_uniform else "benchmarks' domains"
            raise DataError(f"the {kind} are used up at {len(chosen)} of {n} rows; lower n, or bring more rows")
        if is_uniform:
            name = names[draw_integer_below(len(names), random)]
        else:
            name = list(weights)[find_weighted_index(list(weights.values()), random.random())]
        members = domains[name]
        index = find_weighted_index(
            compute_length_weights([candidate.length for candidate in members]), random.random()
        )
        chosen.setdefault(members.pop(index).id, "uniform" if is_uniform else "benchmark")
        if not members:
            names.remove(name)
            weights.pop(name, None)
    return chosen


def rank_by_length(lengths: Sequence[int]) -> list[int]:
    """Returns the rank of each length, 0 for the longest.

    Of equal ones the later comes first. The notebook's order of equal lengths is that of numpy's quicksort, which
    differs between processors; ours is that of a stable sort.
    """
    shortest_first = sorted(range(len(lengths)), key=lambda index: lengths[index])
    ranks = [0] * len(lengths)
    for rank, index in enumerate(reversed(shortest_first)):
        ranks[index] = rank
    return ranks


def compute_length_weights(lengths: Sequence[int]) -> list[float]:
    """Returns the sampling weight of each length: 2 to the power of minus its rank."""
    return [ldexp(1.0, -rank) for rank in rank_by_length(lengths)]


def rank_within_domains(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Returns each candidate's rank by length within its domain, by row id."""
    domains: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        domains.setdefault(candidate.domain, []).append(candidate)
    return {
        candidate.id: rank
        for members in domains.values()
        for candidate, rank in zip(members, rank_by_length([candidate.length for candidate in members]), strict=True)
    }


def find_weighted_index(weights: Sequence[float], drawn: float) -> int:
    """Returns the index that a number drawn from [0, 1) selects under the given weights.

    `RandomState.choice` with `p` finds the same.
    """
    total = fsum(weights)
    running_sums = list(accumulate(weight / total for weight in weights))
    return bisect_right([running_sum / running_sums[-1] for running_sum in running_sums], drawn)


def draw_integer_below(bound: int, random: Random) -> int:
    """Draws a random integer below a bound exactly as numpy's `RandomState.randint(bound)` does.

    `RandomState.choice` without `p` draws the same. Masked bits are drawn until they fit.
    """
    if bound == 1:
        return 0
    mask = (1 << (bound - 1).bit_length()) - 1
    while (drawn := random.getrandbits(32) & mask) >= bound:
        pass
    return drawn


def make_numpy_random(seed: int) -> Random:
    """Makes a Python generator that draws the same numbers as `numpy.random.RandomState(seed)`.

    Seeds go from 0 to 2**32 - 1. Both are MT19937; they differ only in how a seed fills the state. Knuth's way,
    numpy's, is written out here.
    """
    state = [seed]
    for index in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + index) & 0xFFFFFFFF)
    random = Random()
    random.setstate((3, (*state, 624), None))
    return random

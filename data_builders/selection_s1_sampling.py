"""Draws from domains, the longest first by halves: s1's diversity sampling, on the stream of numpy's RandomState."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import fsum, ldexp
from random import Random
from typing import NamedTuple

from qwen_align.align.errors import DataError


class Candidate(NamedTuple):
    """A row that can be drawn."""

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
    """`chosen` and what is drawn until there are `n`: id -> how it was chosen, in the order of choice.

    A domain is drawn, all alike until `uniform_until` rows are chosen and by `weights` from then on (None: alike to the
    end); then a row of it, one place down in length halving its odds. Rows chosen before can be drawn once, in vain,
    as in s1's notebook. Raises DataError when the domains are used up.
    """
    chosen = dict(chosen)
    domains: dict[str, list[Candidate]] = {}
    for one in candidates:
        domains.setdefault(one.domain, []).append(one)
    names, weights = sorted(domains), dict(weights)
    while len(chosen) < n:
        is_uniform = uniform_until is None or len(chosen) < uniform_until
        if not (names if is_uniform else weights):
            kind = "domains" if is_uniform else "benchmarks' domains"
            raise DataError(f"the {kind} are used up at {len(chosen)} of {n} rows; lower n, or bring more rows")
        if is_uniform:
            name = names[integer_below(len(names), random)]
        else:
            name = list(weights)[place_by_weight(list(weights.values()), random.random())]
        members = domains[name]
        place = place_by_weight(length_weights([one.length for one in members]), random.random())
        chosen.setdefault(members.pop(place).id, "uniform" if is_uniform else "benchmark")
        if not members:
            names.remove(name)
            weights.pop(name, None)
    return chosen


def length_places(lengths: Sequence[int]) -> list[int]:
    """Each one's place by length, the longest 0; of equal ones the later comes first.

    The notebook's order of equal lengths is that of numpy's quicksort, which differs between processors; ours is that
    of a stable sort.
    """
    shortest_first = sorted(range(len(lengths)), key=lambda place: lengths[place])
    places = [0] * len(lengths)
    for rank, place in enumerate(reversed(shortest_first)):
        places[place] = rank
    return places


def length_weights(lengths: Sequence[int]) -> list[float]:
    """2 to the power of minus each one's place by length."""
    return [ldexp(1.0, -place) for place in length_places(lengths)]


def length_ranks(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Each one's place by length in its domain, by id."""
    domains: dict[str, list[Candidate]] = {}
    for one in candidates:
        domains.setdefault(one.domain, []).append(one)
    return {
        one.id: place
        for members in domains.values()
        for one, place in zip(members, length_places([one.length for one in members]), strict=True)
    }


def place_by_weight(weights: Sequence[float], drawn: float) -> int:
    """The place that a number drawn from [0, 1) falls on, as `RandomState.choice` with `p` finds it."""
    total = fsum(weights)
    sums = list(accumulate(weight / total for weight in weights))
    return bisect_right([one / sums[-1] for one in sums], drawn)


def integer_below(bound: int, random: Random) -> int:
    """What `RandomState.randint(bound)`, and so `choice` without `p`, draws: masked bits until they fit."""
    if bound == 1:
        return 0
    mask = (1 << (bound - 1).bit_length()) - 1
    while (drawn := random.getrandbits(32) & mask) >= bound:
        pass
    return drawn


def legacy_random(seed: int) -> Random:
    """A generator that draws what `numpy.random.RandomState(seed)` does, for seeds from 0 to 2**32 - 1.

    Both are MT19937; they differ only in how a seed fills the state. Knuth's way, numpy's, is written out here.
    """
    state = [seed]
    for place in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + place) & 0xFFFFFFFF)
    random = Random()
    random.setstate((3, (*state, 624), None))
    return random

"""Limits on processor time that hold on slow machines too.

A limit is in seconds of a machine on which `_loop` takes `LOOP_S`; where that takes longer, so may the test.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

# The slowest machine seen takes 0.1 s, and 2.5 times the processor time of those on which the limits were set.
LOOP_S = 0.04


def slowness() -> float:
    """How many times as slow this machine is as that of the limits, right now; never below 1."""
    return max(1.0, min(_loop() for _ in range(3)) / LOOP_S)


@contextmanager
def cpu_limit(seconds: float, what: str = "") -> Iterator[None]:
    """Fails when the calling thread needs more processor time for what is inside."""
    started = time.thread_time()
    yield
    took = time.thread_time() - started
    assert took < seconds or took < seconds * slowness(), f"{took:.3f} s instead of {seconds}: {what[:80]}"


def _loop() -> float:
    started = time.thread_time()
    total = 0
    for number in range(1_000_000):
        total += number * number
    return time.thread_time() - started

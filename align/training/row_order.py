"""The order in which rows are trained, the same for any number of processes."""

import random


def draw_row_order(n_rows: int, n_draws: int, seed: int) -> list[int]:
    """Returns row numbers in the order they are trained: one permutation after another, cut after `n_draws`.

    The same for any number of processes, and every batch is full.
    """
    drawn: list[int] = []
    epoch = 0
    while len(drawn) < n_draws:
        permutation = list(range(n_rows))
        random.Random(f"{seed}:{epoch}").shuffle(permutation)
        drawn += permutation
        epoch += 1
    return drawn[:n_draws]

"""Draws the order in which training visits rows, the same for any number of processes."""

import random


def draw_row_order(n_rows: int, n_draws: int, seed: int) -> list[int]:
    """Draws `n_draws` row numbers from shuffled passes over all rows.

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

"""Cuts what an optimiser step trains on into forward passes of at most so many tokens."""

from collections.abc import Sequence

from qwen_align.align.settings.pass_limits import PassLimits


def plan_micro_batches(lengths: Sequence[int], limits: PassLimits, *, is_padded: bool) -> list[list[int]]:
    """Plans the forward passes over rows of the given lengths, in tokens; each is a list of row numbers.

    `is_padded`: rows are padded to the longest of their pass, and so go with others of about their length.
    """
    budget = limits.compute_budget(lengths)
    if not is_padded:
        passes = fill_passes([(n, [row]) for row, n in enumerate(lengths)], budget)
        return [[row for _, (row,) in part] for part in passes]
    padded: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if not padded or (len(padded[-1]) + 1) * lengths[padded[-1][0]] > budget:
            padded.append([])
        padded[-1].append(row)
    return padded


def fill_passes(units: Sequence[tuple[int, list[int]]], budget: int) -> list[list[tuple[int, list[int]]]]:
    """Packs units of some tokens into as few forward passes within the budget as a simple rule finds.

    The longest go first, each to the first pass that has room. A longer unit than the budget goes alone.
    """
    passes: list[list[tuple[int, list[int]]]] = []
    room: list[int] = []
    for unit in sorted(units, key=lambda unit: (-unit[0], unit[1])):
        fitting = next((number for number, left in enumerate(room) if left >= unit[0]), None)
        if fitting is None:
            passes.append([unit])
            room.append(budget - unit[0])
        else:
            passes[fitting].append(unit)
            room[fitting] -= unit[0]
    return passes

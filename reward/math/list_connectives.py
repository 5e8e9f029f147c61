r"""What the items of a list say together: all at once, one of them, or one with a counter that the other explains."""

import re

from qwen_align.reward.math.answer_values import Chain, Group
from qwen_align.reward.math.bracket_aware_split import relation_sides
from qwen_align.reward.math.variable_names import base_of

_COUNTER = re.compile(r"\(?(?:\\forall )?([kmn]) ?\\in ?(?:\\mathbb ?\{ ?Z ?\}|\\mathbb Z|\\Z)\)?")
AND = re.compile(r"and|且|\\land|\\text\{\s*,?\s*and\s*\}")
OR = re.compile(r"or|或者?|\\lor|\\text\{\s*,?\s*or\s*\}")


def are_of_several(group: Group) -> bool:
    """Whether all items are relations and they begin differently: `x = 0 or y = 0` is not `x = 0, y = 0`."""
    chains = [item for item in group.items if isinstance(item, Chain) and set(item.relations) == {"="}]
    return len(chains) == len(group.items) and len({base_of(chain.sides[0]) for chain in chains}) > 1


def without_counters(items: list[str]) -> list[str]:
    """The items without `k \\in \\mathbb{Z}` where k occurs in another: that is what k means there."""
    counters = {item: found[1] for item in items if (found := _COUNTER.fullmatch(item))}
    others = [item for item in items if item not in counters]
    if not counters or not all(any(_counts(one, letter) for one in others) for letter in counters.values()):
        return items
    is_bound = any(
        relation_sides(one)[1] and not _counts(one, letter) for one in others for letter in counters.values()
    )
    return items if is_bound else others


def _counts(item: str, letter: str) -> bool:
    """Whether an item gives values numbered by the letter: `x = 2k\\pi`, but not `k > 3`."""
    sides, relations = relation_sides(item)
    occurs = [re.search(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])", side) is not None for side in sides]
    return occurs[-1] and set(relations) <= {"="} and (len(sides) == 1 or not occurs[0])


def are_half_lines(group: Group) -> bool:
    """Whether all items are inequalities, of which "and" makes one."""
    return all(isinstance(item, Chain) and not set(item.relations) & {"=", r"\ne", r"\in"} for item in group.items)

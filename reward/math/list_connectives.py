"""Interprets "and" and "or" between the items of a list, and drops the domains of integer parameters."""

import re

from qwen_align.reward.math.answer_values import RelationChain, UnorderedItems
from qwen_align.reward.math.bracket_aware_split import split_relations
from qwen_align.reward.math.variable_names import strip_subscript

_COUNTER_DOMAIN = re.compile(r"\(?(?:\\forall )?([klmnrt]) ?\\in ?(?:\\mathbb ?\{ ?Z ?\}|\\mathbb Z|\\Z)\)?")
_INTEGER_IN_WORDS = re.compile(
    r"([klmnrt]) ?(?:\\text ?\{ ?)?(?:(?: ?(?:is|be))? ?(?:an|any)? ?integer|(?:为|是|取)任?意?整数) ?\}?"
)
_SET_VARIABLE = re.compile(r"\A\s*\$?\s*\\\{ ?([A-Za-z])(?: ?\\in[^:|{}]*(?:\{[A-Z]\})?)? ?(?:\\mid|[|:])")
AND_PATTERN = re.compile(r"and|且|\\land|\\text\{\s*,?\s*and\s*\}")
OR_PATTERN = re.compile(r"or|或者?|\\lor|\\text\{\s*,?\s*or\s*\}")


def rename_counter(text: str, other: str) -> str:
    r"""Renames the integer parameter of a family such as `x = 2n\pi, n \in \mathbb{Z}` to that of another one.

    Also renames the variable of a set such as `\{t : t > 2\}`. Returns the text unchanged where one of them states no
    such parameter, or where the name is taken.
    """
    text, other = state_integer_domains(text), state_integer_domains(other)
    letters = [re.findall(r"([a-z]) ?\\in ?(?:\\mathbb ?\{ ?Z ?\}|\\mathbb Z|\\Z)", family) for family in (text, other)]
    if len(letters[0]) != 1 or len(letters[1]) != 1:
        letters = [_SET_VARIABLE.findall(text), _SET_VARIABLE.findall(other)]
    if len(letters[0]) != 1 or len(letters[1]) != 1 or letters[0] == letters[1]:
        return text
    name = r"(?<![A-Za-z\\]){}(?![A-Za-z])"
    if re.search(name.format(letters[1][0]), text):
        return text
    return re.sub(name.format(letters[0][0]), letters[1][0], text)


def state_integer_domains(text: str) -> str:
    r"""Returns a text with `k \in \mathbb{Z}` where words say that it is an integer, as `k \text{ an integer}` does."""
    if "integer" not in text and "整数" not in text:
        return text
    return _INTEGER_IN_WORDS.sub(r"\1 \\in \\mathbb{Z}", text)


def has_several_variables(group: UnorderedItems) -> bool:
    """Checks whether a list's items are all equations, of different variables.

    This holds for `x = 0 or y = 0`, but not for `x = 0, x = 1`.
    """
    chains = [item for item in group.items if isinstance(item, RelationChain) and set(item.relations) == {"="}]
    return len(chains) == len(group.items) and len({strip_subscript(chain.sides[0]) for chain in chains}) > 1


def drop_counter_domains(items: list[str]) -> list[str]:
    r"""Drops the list items that only give the domain of an integer parameter, such as `k \in \mathbb{Z}`.

    They are dropped where other items depend on the parameter.
    """
    counters = {item: match[1] for item in items if (match := _COUNTER_DOMAIN.fullmatch(item))}
    others = [item for item in items if item not in counters]
    if not counters or not all(
        any(_depends_on_counter(item, letter) for item in others) for letter in counters.values()
    ):
        return items
    is_bound = any(
        split_relations(item)[1] and not _depends_on_counter(item, letter)
        for item in others
        for letter in counters.values()
    )
    return items if is_bound else others


def _depends_on_counter(item: str, counter: str) -> bool:
    r"""Checks whether a list item is a family of values with the given integer parameter.

    This holds for `x = 2k\pi` and k, but not for `k > 3`.
    """
    sides, relations = split_relations(item)
    occurs = [re.search(rf"(?<![A-Za-z\\]){counter}(?![A-Za-z])", side) is not None for side in sides]
    return occurs[-1] and set(relations) <= {"="} and (len(sides) == 1 or not occurs[0])


def has_only_inequalities(group: UnorderedItems) -> bool:
    """Checks whether a list's items are all inequalities. Those joined by "and" are intersected."""
    return all(
        isinstance(item, RelationChain) and not set(item.relations) & {"=", r"\ne", r"\in"} for item in group.items
    )

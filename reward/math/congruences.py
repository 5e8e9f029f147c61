r"""Parses residue classes such as `x \equiv 2 \pmod{7}` or `2 \pmod 7`."""

import re

from qwen_align.reward.math.answer_values import Congruence

_MODULUS = r"\{? ?([0-9]{1,18}) ?\}?"
_MOD = r"\(? ?(?:\\text\{ ?\(?mod ?\}|\\mod|mod)"
_CONGRUENCE = re.compile(
    r"(?:(?P<name>[^=<>]{1,40}?) ?(?:\\equiv|=) ?)?(?P<residue>-?[0-9]{1,18}) ?"
    rf"(?:\\pmod ?{_MODULUS}|\\bmod ?{_MODULUS}|{_MOD} ?{_MODULUS} ?\)?(?:\\text\{{ ?\) ?\}})?)"
)


def parse_congruence(text: str) -> Congruence | None:
    """Parses a residue class in normalized LaTeX. Returns None for any other text."""
    match = _CONGRUENCE.fullmatch(text) if "mod" in text else None
    if match is None or (match["name"] is None and r"\bmod" in text):
        return None  # `17 \bmod 7` is a number
    modulus = next(int(digits) for digits in match.groups()[2:] if digits is not None)
    return Congruence((match["name"] or "").replace(" ", ""), int(match["residue"]), modulus) if modulus else None


def is_same_congruence(gold: Congruence, answer: Congruence) -> bool:
    """Checks whether two residue classes are the same. The name counts only where both have one."""
    return (
        gold.modulus == answer.modulus
        and (gold.residue - answer.residue) % gold.modulus == 0
        and (not gold.name or not answer.name or gold.name == answer.name)
    )

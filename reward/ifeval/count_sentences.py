"""Counts sentences without a model, by full stops and similar marks that do end a sentence.

The official code asks nltk's punkt, which has to be downloaded. Like there, line breaks end no sentence. Unlike there,
`?!` and `!!!` end one sentence, the number of a list item is none, and `。！？` and `।` end sentences too.
"""

import re

_CLOSERS = "\"'”’»)\\]}*_`"
_STOP = re.compile(
    rf"(?<![.!?…])[.!?…]++[{_CLOSERS}]*+(?=\s|\Z)|[。！？｡।॥؟۔]++[{_CLOSERS}」』）】]*+|(?<=[\u3040-\u9fff])[!?]++"
)
_WORD = re.compile(r"\w")
_OPENERS = "\"'“‘«([{*_`"
_LIST_NUMBER = re.compile(r"\n[\s>#*_-]*(?:[0-9]{1,3}|[A-Za-z]|[ivxIVX]{1,5})\Z")
_ACRONYM = re.compile(r"(?:[a-z]\.)+[a-z]")
_CONTEXT_CHARACTERS = 40  # characters looked at before and after a stop; more than any abbreviation or list number has

_NEVER_ENDING = frozenset(
    "mr mrs ms mx dr prof st mt sgt capt cpt lt col gen maj rev hon sen rep gov pres vs cf e.g i.e eg".split()
)
_BEFORE_NUMBERS = frozenset("no nos fig figs vol ch sec eq eqs p pp art ca approx".split())
# These may end a sentence; it does where the next word often begins one.
_SOMETIMES_ENDING = frozenset(
    "inc ltd co corp bros jr sr etc al ph.d jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed"
    " thu thurs fri sat sun ave blvd rd dept est min max oz lb lbs ft tbsp tsp esq".split()
)
_SENTENCE_BEGINNINGS = frozenset(
    "a after all although an and another as at because before both but by despite do during each every finally"
    " first for from furthermore he her here his how however i if in it its let many meanwhile moreover most my"
    " no on once one our please she since so some that the their then there therefore these they this those"
    " though to today we what when where while who why with yes you your".split()
)


def count_sentences(text: str) -> int:
    """Counts the sentences of a text. A part without a letter or digit is no sentence."""
    count = position = 0
    has_word = False
    for stop in _STOP.finditer(text):
        has_word = has_word or _WORD.search(text, position, stop.start()) is not None
        position = stop.end()
        if has_word and _ends_sentence(text, stop):
            count, has_word = count + 1, False
    return count + (has_word or _WORD.search(text, position) is not None)


def _ends_sentence(text: str, stop: re.Match[str]) -> bool:
    """Returns whether a stop such as `.` or `?` at a position of a text ends a sentence."""
    mark = stop[0].rstrip(_CLOSERS.replace("\\", ""))
    first = stop.start() - _CONTEXT_CHARACTERS
    before = text[first : stop.start()] if first > 0 else "\n" + text[: stop.start()]
    after = text[stop.end() : stop.end() + _CONTEXT_CHARACTERS].split(maxsplit=1)
    following = after[0].lstrip(_OPENERS) if after else ""
    if not following:
        return True
    if mark != ".":
        return not set(mark) <= {".", "…"} or (following[0].isalnum() and not following[0].islower())
    if _LIST_NUMBER.search(before):
        return False
    tokens = before.split()
    return not tokens or before[-1].isspace() or _ends_after_word(tokens[-1].lstrip(_OPENERS), following)


def _ends_after_word(token: str, following: str) -> bool:
    """Returns whether a word followed by a full stop ends a sentence, given the text after it."""
    word = token.lower()
    if word in _NEVER_ENDING:
        return False
    if word in _BEFORE_NUMBERS:
        return not following[0].isdigit()
    is_initial = len(token) == 1 and token.isalpha() and token != "I"
    if is_initial or word in _SOMETIMES_ENDING or _ACRONYM.fullmatch(word):
        return following[0].isupper() and following.split("'")[0].rstrip(",").lower() in _SENTENCE_BEGINNINGS
    return True

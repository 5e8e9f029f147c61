"""Where sentences end, and what is a word."""

import pytest

from qwen_align.reward.ifeval.count_sentences import count_sentences
from qwen_align.reward.ifeval.count_words import count_words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two.", 2),
        ("He lives in the U.S. and works at Acme Inc. with Dr. No.", 1),
        ("He lives in the U.S. The weather is fine.", 2),
        ("Room No. 5 is free. No. I do not think so.", 3),
        ("J. R. R. Tolkien wrote it.", 1),
        ("So am I. He is too.", 2),
        ("Well... maybe. Wait... No!", 3),
        ("1. One thing.\n2. Another thing.\n", 2),
        ("It was in 1999. Then it stopped.", 2),
        ("(It is so.) \"Is it?\" *Yes.*", 3),
        ("See https://example.com/a.b?c=d for 3.14 of it.", 1),
        ("你好。世界！好吗？好", 4),
        ("यह है। वह है।", 2),
        ("?!?! ... !", 0),
    ],
)  # fmt: skip
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a_b c-d", 3),
        ("it's", 2),
        ("我爱Python", 3),
        ("हिन्दी में", 2),
        ("e\u0301te\u0301 nai\u0308f", 2),
        ("3.5", 2),
    ],
)
def test_words(text: str, count: int) -> None:
    assert count_words(text) == count

"""F1 of the words in an extraction: what a model named against what the label names."""

import re
from collections import Counter


def judge(completion, gold):
    """2 x right / (named + wanted), in words, each as often as the label has it; what was only thought is not named."""
    text = getattr(completion, "text", completion)
    answer = text.rpartition("</think>")[2].partition("<think>")[0]
    named, wanted = (Counter(re.findall(r"\w+", said.lower())) for said in (answer, gold))
    return 2 * (named & wanted).total() / (named.total() + wanted.total())

"""Which text of a completion may be its code."""

import pytest

from qwen_align.reward.code.extract_code import CodeCandidates, extract_code
from tests.clock import cpu_limit


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\n", CodeCandidates(["x = 1\n"], True)),
        ("    return 1", CodeCandidates(["    return 1"], True)),
        ("```python\na\n```", "a\n"),
        ("```py\na\n```", "a\n"),
        ("```Python3 title=x\na\n```", "a\n"),
        ("```{python}\na\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("``` python \na\n``` ", "a\n"),
        ("```python\na\n```\n```text\nb\n```", "a\n"),
        ("```python\na\n```\n```bash\nrm\n```", "a\n"),
        ("````python\na\n```\nb\n````", "a\n```\nb\n"),
        ("- x\n  ```python\n  a\n    b\n  ```", "a\n  b\n"),
        ("```python\n```", ""),
        ("```python\na", None),
        ("```python\na\n```\nthen\n```python\nb", None),
        ("```json\n{}\n```", None),
        ("text ```python\na\n```", None),
    ],
)
def test_the_last_block_of_python_counts(text: str, found: CodeCandidates | str | None) -> None:
    if not isinstance(found, CodeCandidates):
        found = CodeCandidates([text], False) if found is None else CodeCandidates([text, found], True)
    assert extract_code(text) == found


def test_earlier_blocks_come_after_the_last() -> None:
    text = "```python\na\n```\n~~~py\nb\n~~~\n```\nc\n```"
    assert extract_code(text) == CodeCandidates([text, "c\n", "b\n", "a\n"], True)


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("~~~python\na\n~~~", "a\n"),
        ("~~~python\na\n```\nb\n~~~", "a\n```\nb\n"),
        ("```python\na```", "a\n"),
        ("```python\na```\n", "a\n"),
        ("```python\na```\n\nThat adds.", "a\n"),
        ("```python3.11\na\n```", "a\n"),
        ("```python:add.py\na\n```", "a\n"),
        ("```{.python .numberLines}\na\n```", "a\n"),
        ("```python\n\ufeffa\n```", "a\n"),
        ("\ufeff```python\na\n```", "a\n"),
    ],
)
def test_other_fences_and_marks(text: str, block: str) -> None:
    assert extract_code(text) == CodeCandidates([text.removeprefix("\ufeff"), block], True)


@pytest.mark.parametrize("text", ["", "  \n\t", "x" * 300_000])
def test_no_text_is_no_code(text: str) -> None:
    assert extract_code(text) is None


@pytest.mark.parametrize(
    "text", ["`" * 190_000, "```\n" * 45_000, ("```" + " " * 190_000 + "`"), " " * 190_000 + "```x"]
)
def test_any_text_is_read_in_linear_time(text: str) -> None:
    with cpu_limit(1.0, text):
        extract_code(text)

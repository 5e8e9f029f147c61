"""Programming tasks whose golds are tests: HumanEval and MBPP."""

from typing import Any

from qwen_align.align.rows import Message, Problem, Row
from qwen_align.data_builders.bad_row_errors import BadValue, quoted
from qwen_align.data_builders.format_definition import RowFormat, Target, Values, has, optional_text, text, wanted

_REWARD = "code_tests"


def _humaneval(values: Values, target: Target) -> Row:
    """The prompt is the function's head with its docstring, as it is."""
    gold = {key: text(values, key) for key in ("prompt", "test", "entry_point")}
    if has(values, "canonical_solution"):
        gold["canonical_solution"] = text(values, "canonical_solution")
    return _problem(gold["prompt"], gold, target)


def _mbpp(values: Values, target: Target) -> Row:
    """The prompt names the tests, without which nobody knows the function's name (arXiv:2108.07732, section 3)."""
    tests = wanted(values, "test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise BadValue("wrong type", f"test_list: is {quoted(tests)}, not a list of texts")
    gold: dict[str, Any] = {"tests": tests}
    for key, ours in (("test_setup_code", "test_setup_code"), ("code", "code")):
        if optional_text(values, key).strip():
            gold[ours] = values[key]
    if values.get("test_imports"):
        gold["imports"] = values["test_imports"]
    task = text(values, "text" if has(values, "text") else "prompt").strip()
    return _problem(f"{task} Your code should pass these tests:\n\n" + "\n".join(tests), gold, target)


def _problem(prompt: str, gold: dict[str, Any], target: Target) -> Row:
    messages = [Message(role="user", content=prompt)]
    return Problem(messages=messages, gold=gold, reward=target.reward or _REWARD, **target.shared)


CODE_FORMATS = (
    RowFormat(
        "humaneval",
        "prompt, test, entry_point; canonical_solution",
        ("prompt", "test", "entry_point", "canonical_solution"),
        ("problem",),
        lambda values: has(values, "prompt", "test", "entry_point"),
        _humaneval,
    ),
    RowFormat(
        "mbpp",
        "text or prompt, test_list; code, test_setup_code, test_imports",
        ("text", "prompt", "test_list", "code", "test_setup_code", "test_imports"),
        ("problem",),
        lambda values: has(values, "test_list") and (has(values, "text") or has(values, "prompt")),
        _mbpp,
    ),
)

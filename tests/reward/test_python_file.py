"""A user's own function as a reward: what it may return, and what becomes of one that misbehaves."""

import os
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from qwen_align.align.errors import RecipeError
from qwen_align.align.rows import Completion, Message
from qwen_align.reward.python_file import PythonReward
from qwen_align.reward.settings import RewardList
from qwen_align.reward.verdict import Verdict

FILE = """
import os, time
from neighbour import FACTOR
from qwen_align.reward.verdict import Verdict

state = []

def judge(completion, gold):
    text = completion if isinstance(completion, str) else completion.text
    if text == "hang":
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    if text == "raise":
        raise KeyError("missing")
    if text == "crash":
        os.abort()
    if text == "exit":
        raise SystemExit(3)
    if text == "print":
        print("to the log")
        return 0.5
    return {
        "number": 2, "bool": True, "none": None, "nan": float("nan"), "text": "good",
        "nan dict": {"value": float("inf")},
        "dict": {"value": 0.25, "reason": "a quarter"}, "bad dict": {"valeu": 1.0},
        "verdict": Verdict(value=-1.0, reason="mine"), "gold": float(gold or 0) * FACTOR,
    }[text]

def spread(completions):
    return [float(one.n_tokens == max(c.n_tokens for c in completions)) for one in completions]

def short(completions):
    return [1.0]

not_a_function = 3

def one_argument(completion):
    return 1.0

async def waits(completion, gold):
    return 1.0

def starts(completion, gold):
    import subprocess
    child = subprocess.Popen(["sleep", "60"])
    with open(gold, "w") as file:
        file.write(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture
def reward(tmp_path: Path) -> Any:
    (tmp_path / "neighbour.py").write_text("FACTOR = 10\n")
    file = tmp_path / "mine.py"
    file.write_text(FILE)

    def make(**settings: Any) -> PythonReward:
        given = {"kind": "python", "file": str(file), **settings}
        (made,) = TypeAdapter(RewardList).validate_python([given], context={"folder": str(tmp_path)})
        assert isinstance(made, PythonReward)
        return made

    return make


def completion(text: str, **fields: Any) -> Completion:
    given = {"prompt_id": "p", "sample": 0, "finish_reason": "stop", "n_tokens": 1, **fields}
    return Completion(prompt=[Message(role="user", content="?")], text=text, **given)


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("number", 2.0, "judged"),
        ("bool", 1.0, "judged"),
        ("none", None, "no verdict"),
        ("dict", 0.25, "a quarter"),
        ("verdict", -1.0, "mine"),
        ("print", 0.5, "judged"),
        ("nan", None, "ValueError: nan is no reward"),
        ("text", None, "ValueError: could not convert string to float: 'good'"),
        ("nan dict", None, "TypeError: the dict returned is no verdict: value: must be a finite number; found inf"),
        ("bad dict", None, "TypeError: the dict returned is no verdict: 'valeu' is no setting here"),
        ("raise", None, "KeyError: 'missing'"),
        ("crash", None, "worker died"),
        ("exit", None, "SystemExit: 3"),
    ],
)
def test_what_the_function_returns(reward: Any, text: str, value: float | None, reason: str) -> None:
    for given in (text, completion(text)):
        verdict = reward().judge(given)
        assert verdict.value == value
        assert verdict.reason.startswith(reason)


def test_gold_is_the_rows_own_or_the_given(reward: Any) -> None:
    assert reward().judge(completion("gold", gold="4")).value == 40.0
    assert reward().judge(completion("gold", gold="4"), "5").value == 50.0
    assert reward().judge("gold", 6).value == 60.0


def test_a_completion_that_another_reward_had_no_verdict_on_is_judged(reward: Any) -> None:
    row = completion("number").model_copy(update={"verdicts": {"math_answer": Verdict(value=None, reason="no gold")}})
    assert reward().judge(row).value == 2.0


def test_a_function_that_hangs_is_ended_and_the_rest_judged(reward: Any) -> None:
    mine = reward(time_limit_s=0.5)
    mine.warm_up()
    started = time.monotonic()
    rows = [completion(text, prompt_id=str(n)) for n, text in enumerate(["number", "hang", "dict"])]
    assert [verdict.value for verdict in mine.judge_many(rows)] == [2.0, 0.0, 0.25]
    assert time.monotonic() - started < 3.0
    assert mine.judge(rows[1]) == Verdict(value=0.0, reason="time limit")


def test_a_function_of_groups(reward: Any) -> None:
    rows = [completion("", prompt_id=name, n_tokens=n) for name, n in (("a", 1), ("b", 2), ("a", 3))]
    assert [one.value for one in reward(name="spread", group=True).judge_many(rows)] == [0.0, 1.0, 1.0]
    short = reward(name="short", group=True).judge_group(rows)
    assert [(one.value, one.reason) for one in short] == [(None, "ValueError: 1 values returned for 3 completions")] * 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jugde", "has no function 'jugde'; it has: Verdict, judge, spread, short, one_argument, waits, starts"),
        ("not_a_function", "has no function"),
    ],
)
def test_a_function_that_is_not_there_is_told_at_the_door(reward: Any, name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        reward(name=name).warm_up()


def test_a_file_that_is_not_there_or_broken_is_told_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not there"):
        PythonReward(file=str(tmp_path / "none.py")).warm_up()
    (tmp_path / "broken.py").write_text("def judge(:\n")
    with pytest.raises(RecipeError, match="SyntaxError"):
        PythonReward(file=str(tmp_path / "broken.py")).warm_up()


def test_verdicts_are_kept_by_the_functions_name(reward: Any) -> None:
    assert reward().label == "judge"
    assert reward().is_outcome
    assert not reward(shaping=True).is_outcome


TRL = """
def accuracy(prompts, completions, solution, **kwargs):
    said = [completion[0]["content"] for completion in completions]
    asked = [prompt[-1]["content"] for prompt in prompts]
    return [float(text == gold and question == "?") for text, gold, question in zip(said, solution, asked)]

def judge(completions, **kwargs):
    return [float(len(text)) for text in completions]

def grouped(completions, **kwargs):
    return [0.5 for one in completions]
"""


def test_a_function_of_trls_form_is_refused_with_what_to_add(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TRL)
    with pytest.raises(RecipeError, match=r"accuracy takes lists of prompts and .*as TRL's .*`name: judge`") as error:
        PythonReward(file=str(file), name="accuracy").warm_up()
    added = str(error.value).partition("\n")[2]
    with pytest.raises(RecipeError, match=r"`name: judge_one`"):
        PythonReward(file=str(file)).warm_up()
    file = tmp_path / "mended.py"
    file.write_text(TRL + "\n" + textwrap.dedent(added))
    mended = PythonReward(file=str(file))
    assert [mended.judge(completion("7", gold=gold)).value for gold in ("7", "8")] == [1.0, 0.0]
    assert PythonReward(file=str(file), name="grouped", group=True).judge_group([completion("7")])[0].value == 0.5
    with pytest.raises(RecipeError, match="without `group`"):
        PythonReward(file=str(file), name="accuracy", group=True).warm_up()


def test_an_error_names_the_users_own_line(reward: Any, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("import json\n\ndef read(text):\n    return json.loads(text)\n")
    file = tmp_path / "reads.py"
    file.write_text(
        "from neighbour import read\n\ndef judge(completion, gold):\n    return read(completion.text)['a']\n"
    )
    reads = PythonReward(file=str(file))
    assert reads.judge(completion("{")).reason.endswith("(neighbour.py, line 4: return json.loads(text))")
    assert reads.judge(completion("{}")).reason == "KeyError: 'a' (reads.py, line 4: return read(completion.text)['a'])"


def test_what_the_function_starts_is_ended_with_it(reward: Any, tmp_path: Path) -> None:
    mine = reward(name="starts", time_limit_s=1.0)
    mine.warm_up()
    assert mine.judge(completion("x"), str(tmp_path / "pid")).reason == "time limit"
    pid = int((tmp_path / "pid").read_text())
    limit = time.monotonic() + 5.0
    while (
        time.monotonic() < limit
        and Path(f"/proc/{pid}").exists()
        and " Z " not in Path(f"/proc/{pid}/stat").read_text()
    ):
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize("name", ["math", "json", "random"])
def test_a_file_may_be_named_as_a_module_of_pythons(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(f"import {name}\n\ndef judge(completion, gold):\n    return float(hasattr({name}, '__loader__'))\n")
    assert PythonReward(file=str(file)).judge("x", "1").value == 1.0


def test_an_error_in_a_library_names_the_users_line_wherever_the_library_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "site-packages" / "a_library.py"  # the user's own, as of `pip install --user`
    library.parent.mkdir()
    library.write_text("def fail():\n    raise KeyError('inside')\n")
    monkeypatch.setenv("PYTHONPATH", str(library.parent), prepend=os.pathsep)
    file = tmp_path / "mine.py"
    file.write_text("import a_library\n\ndef judge(completion, gold):\n    return a_library.fail()\n")
    assert PythonReward(file=str(file)).judge("x", "1").reason == (
        "KeyError: 'inside' (mine.py, line 4: return a_library.fail())"
    )

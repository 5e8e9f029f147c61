"""`check` tries a user's reward on two problems: what always raises is refused, the rest is told, nothing is left."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.commands import check
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.stages import reward_trials

BUILDER = {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]}
SAMPLING = {"temperature": 1.0, "max_tokens": 8}
GRPO: dict[str, Any] = {
    "name": "grpo",
    "kind": "grpo",
    "from_model": "base",
    "from_data": ["problems"],
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 2,
    "sampling": SAMPLING,
    "learning_rate": 1e-4,
}


@pytest.fixture
def say(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., list[str]]:
    """The lines that `check` says of a GRPO stage with the reward that a text of Python defines."""

    def of(text: str, *, stage: dict[str, Any] = GRPO, runs_code: bool = True, **reward: Any) -> list[str]:
        (tmp_path / "mine.py").write_text(text)
        rewards = [{"kind": "python", "file": "mine.py", **reward}]
        stages = [{"name": "problems", "kind": "build_data", "builder": BUILDER}, {**stage, "rewards": rewards}]
        models = {"base": {"path": str(tiny_model)}}
        planned = make_plan(write_recipe(stages, models=models), tmp_path)
        return list(check.describe_plan(planned, runs_code=runs_code))

    return of


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def judge(completion, gold):\n    return helper(gold)\n\ndef helper(gold):\n    return undefined + gold\n",
            r"stage 'grpo': rewards: judge of .*mine\.py raises on each of 26 completions .*: NameError: name "
            r"'undefined' is not defined \(mine\.py, line 5: return undefined \+ gold\)",
        ),
        (
            "def judge(completion, gold):\n    return [1.0]\n",
            r"TypeError: \[1\.0\] returned for one completion; w",
        ),
        ("import os\ndef judge(completion, gold):\n    os.abort()\n", r"raises on each of 26 .*: worker died"),
        (
            "import sys\ndef judge(completion, gold):\n    sys.exit(0)\n",
            r"raises on each of 26 .*: SystemExit: 0 \(mine\.py, line 3: sys\.exit\(0\)\)",
        ),
        (
            "def judge(completion, gold):\n    return None\n",
            r"stage 'grpo': rewards: judge of .*mine\.py raises on, or returns None for, each of 26 .*: no verdict",
        ),
        ("LIMIT = {}['limit']\n", r"reward .*mine\.py: KeyError: 'limit' \(mine\.py, line 1: LIMIT = {}\['limit'\]\)"),
        ("def judge(completion, gold):\n    return 1.0 +\n", r"SyntaxError: .*mine\.py, line 2\): return 1\.0 \+"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(mine\.py, line 2: sys\.exit\(3\)\)"),
    ],
)
def test_a_reward_that_always_raises_is_refused_with_its_line(
    say: Callable[..., list[str]], text: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        say(text)


def test_an_evaluation_tries_the_reward_that_its_questions_name(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    (tmp_path / "mine.py").write_text("def judge(completion, gold):\n    return completion.nothing\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say hi."}\n')
    builder = {"kind": "local_file", "path": "rows.jsonl", "rows": "problem", "reward": "python"}
    asked = {"kind": "evaluate", "from_model": "base", "from_data": ["asked"], "completions_per_prompt": 1}
    rewards = [{"kind": "python", "file": "mine.py"}]
    stages = [
        {"name": "asked", "kind": "build_data", "builder": builder},
        {**asked, "name": "eval", "sampling": SAMPLING, "rewards": rewards},
    ]
    planned = make_plan(write_recipe(stages, models={"base": {"path": str(tiny_model)}}), tmp_path)
    with pytest.raises(RecipeError, match=r"stage 'eval': rewards: judge .* raises on each of 13 .*line 2: ret"):
        list(check.describe_plan(planned))


def test_what_it_raises_on_now_and_then_is_counted(say: Callable[..., list[str]]) -> None:
    text = "def judge(completion, gold):\n    return float(completion.text.split('boxed{')[1].startswith(gold))\n"
    lines = "\n".join(say(text))
    assert "judge raises on 18 of 26 completions that it was tried on, such as 'empty': IndexError: list index" in lines
    assert "(mine.py, line 2: return float(" in lines
    assert "judge pays for what solves nothing: the gold in the thinking only" in lines


def test_a_sound_reward_of_groups_passes_in_silence(say: Callable[..., list[str]]) -> None:
    text = (
        "def rank(completions):\n"
        "    assert len(completions) == 2\n"
        "    return [float(one.text.rpartition('</think>')[2].strip() == one.gold) for one in completions]\n"
    )
    assert not [line for line in say(text, name="rank", group=True) if "rank" in line]


def test_a_reward_that_hangs_costs_a_short_time(say: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_trials, "TIME_LIMIT_S", 1.0)
    started = time.monotonic()
    lines = "\n".join(say("def judge(completion, gold):\n    while True:\n        pass\n"))
    assert time.monotonic() - started < 8.0
    assert "judge judged 0 of 26 completions that it was tried on in 1 s; in a run a call that takes longer" in lines


def test_no_code_runs_nothing_and_says_so(say: Callable[..., list[str]], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    lines = say(f"open({str(ran)!r}, 'w')\ndef judge(completion, gold):\n    return 1.0\n", runs_code=False)
    assert any(f"judge was not tried (--no-code): {tmp_path / 'mine.py'}" in line for line in lines)
    assert not ran.exists()


def test_no_code_leaves_out_what_a_classifier_chooses(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    (tmp_path / "mine.py").write_text("raise ValueError('it was run')\n")
    domains = {"kind": "domains", "from_data": "problems", "domain": {"by": "python", "file": "mine.py"}}
    stages = [
        {"name": "problems", "kind": "build_data", "builder": BUILDER},
        {"name": "chosen", "kind": "build_data", "builder": domains},
    ]
    recipe = write_recipe(stages)
    assert "it was run" in cli("check", recipe).err
    done = cli("check", recipe, "--no-code")
    assert done.code == 0, done.err
    assert f"unknown until {tmp_path / 'mine.py'} is run, which --no-code leaves out" in done.out


CHECK = """
import sys
from qwen_align.cli import main
sys.exit(main(["check", sys.argv[1], "--home", sys.argv[2]]))
"""


def list_started(marker: Path) -> list[int]:
    return [int(line) for line in marker.read_text().split()] if marker.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("is_killed", [False, True], ids=["ended", "killed while it imports"])
def test_a_check_leaves_no_process_behind(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], is_killed: bool
) -> None:
    marker = tmp_path / "pids"
    hang = "import time\nwhile True:\n    time.sleep(1)\n" if is_killed else ""
    (tmp_path / "mine.py").write_text(
        f"import os, subprocess\nopen({str(marker)!r}, 'a').write(f'{{os.getpid()}} ')\n{hang}"
        "def judge(completion, gold):\n"
        f"    child = subprocess.Popen(['sleep', '600'])\n"
        f"    open({str(marker)!r}, 'a').write(f'{{os.getpid()}} {{child.pid}} ')\n"
        "    return 0.0\n"
    )
    stages = [
        {"name": "problems", "kind": "build_data", "builder": {**BUILDER, "n": 1}},
        {**GRPO, "rewards": [{"kind": "python", "file": "mine.py"}]},
    ]
    recipe = write_recipe(stages, models={"base": {"path": str(tiny_model)}})
    line = [sys.executable, "-c", CHECK, str(recipe), str(tmp_path)]
    checking = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    if is_killed:
        limit = time.monotonic() + 30.0
        while not list_started(marker) and time.monotonic() < limit:
            time.sleep(0.05)
        checking.kill()
    assert checking.wait(60) == (-9 if is_killed else 0)
    started = list_started(marker)
    assert started
    limit = time.monotonic() + 5.0
    while any(map(is_alive, started)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not [pid for pid in started if is_alive(pid)]

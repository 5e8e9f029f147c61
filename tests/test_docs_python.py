"""docs/python.md: its snippets run one after another, and every argument of the Python API is on the page."""

import inspect
import linecache
import re
from pathlib import Path
from typing import Any

import pytest

import qwen_align
from qwen_align.align.api.results import Evaluation, StageResult
from qwen_align.align.api.run import StagePlan

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
TEXT = PAGE.read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["Recipe", "plan", "run", "evaluate", "load_model"])
def test_every_argument_is_on_the_page(name: str) -> None:
    taken = set(inspect.signature(getattr(qwen_align, name)).parameters)
    described = {"source", "sections", "settings", "recipe"}  # said in other words
    absent = [argument for argument in taken - described if not re.search(rf"\b{argument}\b", TEXT)]
    assert not absent


@pytest.mark.parametrize(
    "field", [*StagePlan.__dataclass_fields__, *StageResult.__dataclass_fields__, "question_means"]
)
def test_every_field_of_a_stage_is_on_the_page(field: str) -> None:
    assert re.search(rf"`{field}`|\.{field}\b", TEXT)
    assert "question_means" in Evaluation.__dataclass_fields__


@pytest.mark.slow
def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {"__name__": "snippets"}
    for number, snippet in enumerate(SNIPPETS):
        file = f"<docs/python.md {number}>"  # where inspect finds the source, as it does that of a notebook's cell
        linecache.cache[file] = (len(snippet), None, snippet.splitlines(keepends=True), file)
        exec(compile(snippet, file, "exec"), known)
    printed = capsys.readouterr().out
    assert "4 stages, 4 to run" in printed
    assert "['examples', 'questions', 'sft', 'eval_sft']" in printed, (
        "what the change would run, before anything has run"
    )
    assert re.search(r"4/4  eval_sft +evaluate +\d+\.\d s", printed)
    assert known["evaluation"].n_questions == 2
    assert known["model"].config.vocab_size >= len(known["tokenizer"])

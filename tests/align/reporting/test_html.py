"""report.html: whole, by itself, escaped, in two languages."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.reporting.report_files import write_report
from qwen_align.align.store.files import write_json
from qwen_align.align.store.stage_folder import StageFolder
from tests.align.reporting.test_results import BEFORE, DATA, EVALUATE, OTHER, SFT, finish, plan

__all__ = ["plan"]
BAD = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Tags in order, and the text under each language."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def completion(identity: str, value: float, text: str) -> dict[str, Any]:
    return {
        "prompt_id": identity,
        "prompt": [{"role": "user", "content": f"1+1? {BAD}"}],
        "text": text,
        "gold": "2",
        "verdicts": {"math_answer": {"value": value, "reason": "right" if value else "wrong"}},
        "reward": "math_answer",
        "mode": None,
        "n_tokens": 7,
        "finish_reason": "stop",
    }


@pytest.fixture
def page(plan: Callable[..., Plan]) -> str:
    planned = plan(DATA, OTHER, SFT, BEFORE, EVALUATE, report={"title": f"t {BAD}", "controls": ["sft"]})
    finish(planned, "test", "other", "sft", "eval_base", "eval_sft")
    for one in planned.stages:
        if one.stage.name == "sft":
            lines = [{"step": step, "loss": 2.0 / step, "grad_norm": 1.0} for step in range(1, 30)]
            lines_of(one.folder.path / "metrics.jsonl", lines)
            lines_of(one.folder.path / "notes.jsonl", [{"step": 3, "what": "entropy", "message": f"fell {BAD}"}])
        if one.stage.name == "eval_sft":
            rows = [completion("a", 1.0, "<think>\none\n</think>\n\n2"), completion("b", 0.0, f"<think>\n{BAD}")]
            lines_of(one.folder.path / "completions.jsonl", rows)
    write_report(planned)
    return (planned.run_folder / "report.html").read_text(encoding="utf-8")


def lines_of(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_it_is_whole_and_loads_nothing(page: str) -> None:
    reader = read(page)
    assert not reader.links
    assert reader.tags.count("script") == 1
    assert "link" not in reader.tags
    assert set(re.findall(r"https?://[^\"'<> ]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "url(" not in page


def test_nothing_that_a_model_or_a_recipe_says_is_markup(page: str) -> None:
    assert BAD not in page
    assert page.count("&lt;script&gt;") >= 4


def test_it_has_every_part_in_both_languages(page: str) -> None:
    for english, chinese in (
        ("The ladder", "各级结果"),
        ("What the watchdogs said", "看门狗的话"),
        ("Learning curves", "学习曲线"),
        ("Lengths and rewards", "长度与奖励的分布"),
        ("Samples to read", "样例"),
        ("Data", "数据"),
        ("What each stage took", "各阶段的开销"),
        ("Settings and versions", "设置与版本"),
    ):
        assert f'<span class="en">{english}</span><span class="zh" lang="zh">{chinese}</span>' in page
    assert page.count('class="en"') == page.count('class="zh"')
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_a_sample_has_its_thinking_apart_its_verdict_and_its_gold(page: str) -> None:
    assert '<div class="said thinking">one</div>' in page
    assert '<div class="said">2</div>' in page
    assert "math_answer: 1 right" in page
    assert "math_answer: 0 wrong" in page


def test_the_tables_to_copy_are_a_markdown_and_a_latex_table(page: str) -> None:
    (markdown,) = re.findall(r'<pre id="markdown" hidden>(.*?)</pre>', page, re.DOTALL)
    (latex,) = re.findall(r'<pre id="latex" hidden>(.*?)</pre>', page, re.DOTALL)
    rows = markdown.splitlines()
    assert rows[0] == "| model | set | asked | accuracy | reward | runs | no verdict | obeyed | tokens |"
    assert "| base | test | default | 50.0 ± 2.5 | 0.625 | 1 | 3 |  | 12 |" in rows
    assert "| sft (control) | other | kwarg no_think | 53.0 ± 2.5 | 0.625 | 1 | 3 |  | 12 |" in rows
    assert r"base &amp; test &amp; kwarg no\_think &amp; 51.0 $\pm$ 2.5" in latex
    assert latex.startswith(r"\begin{tabular}")


def test_seeds_are_pooled_their_questions_paired_and_the_curves_stand_together(plan: Callable[..., Plan]) -> None:
    planned = plan(DATA, SFT, BEFORE, {**EVALUATE, "from_data": ["test"]}, matrix={"seed": [0, 1]})
    names = [one.stage.name for one in planned.stages]
    finish(planned, *names)
    better = {"a": 1.0, "b": 1.0, "c": 0.5, "d": 0.75}
    worse = {"a": 0.5, "b": 0.75, "c": 0.25, "d": 0.5}
    for one in planned.stages:
        if one.stage.kind == "evaluate":
            means = worse if one.stage.name.startswith("eval_base") else better
            write_json(one.folder.path / "questions.json", {"means": [means, means]})
        if one.stage.kind == "sft":
            lines_of(one.folder.path / "metrics.jsonl", [{"step": step, "loss": 1.0} for step in (1, 2, 3)])
    written = write_report(planned)
    default = [one for one in written.comparisons if one["switch"] == "default"]
    assert [(one["from"], one["to"], one["seed"]) for one in default] == [
        ("base", "sft", 0),
        ("base", "sft", 1),
        ("base", "sft", None),
    ]
    for one in default:
        assert one["difference"] == pytest.approx(0.3125)
        # Four questions, all better: of 16 ways to flip signs two are as far out.
        assert one["p"] == pytest.approx(2 / 16, abs=0.02)
    page = (planned.run_folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<summary><b>sft</b>") == 1
    (picture,) = re.findall(r'<svg[^>]*aria-label="loss".*?</svg>', page)
    assert picture.count('class="line"') == 2
    assert "| sft | test | default | 50.0 ± 0.0 | 0.625 | 2 | 3 |" in page


# --- while a run goes on


def curves(page: str) -> dict[str, bool]:
    """Whether the curves of each stage that has some are open."""
    found = re.findall(r'<details class="card" id="curves-([^"]*)"( open)?>', page)
    return {name: bool(is_open) for name, is_open in found}


def write_metrics(planned: Plan, name: str, steps: int, **more: float) -> Path:
    folder = planned.find_stages(name)[0].folder.path
    folder.mkdir(parents=True, exist_ok=True)
    lines_of(folder / "metrics.jsonl", [{"step": step, "loss": 1.0, **more} for step in range(1, steps + 1)])
    return folder


def test_a_stage_that_runs_has_its_curves_so_far(plan: Callable[..., Plan]) -> None:
    planned = plan(DATA, SFT)
    finish(planned, "test")
    folder = write_metrics(planned, "sft", 3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')  # it is being written
    lines_of(folder / "notes.jsonl", [{"step": 3, "what": "entropy", "message": "fell"}])
    with StageFolder(folder).hold_lease():
        write_report(planned)
    page = (planned.run_folder / "report.html").read_text(encoding="utf-8")
    read(page)
    assert curves(page) == {"sft": True}
    (picture,) = re.findall(r'<svg[^>]*aria-label="loss".*?</svg>', page)
    assert picture.count("<circle") == 3
    assert "Running now:</span>" in page
    assert '<span class="en">running</span>' in page
    assert "location.reload()" in page
    assert "Not run yet" not in page
    assert "entropy<br>fell" in page
    write_report(planned)
    page = (planned.run_folder / "report.html").read_text(encoding="utf-8")
    assert '<span class="en">not finished</span>' in page, "it was killed"
    assert "Running now" not in page
    assert "location.reload()" not in page
    assert "Not run yet:</span><span" in page


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_one_curve_there_is_stands_open(plan: Callable[..., Plan], steps: int) -> None:
    planned = plan(DATA, SFT)
    finish(planned, "test", "sft")
    write_metrics(planned, "sft", steps)
    write_report(planned)
    assert curves((planned.run_folder / "report.html").read_text(encoding="utf-8")) == {"sft": True}


def test_of_several_curves_those_of_rl_are_open_or_the_last(plan: Callable[..., Plan]) -> None:
    def opened(*stages: dict[str, Any]) -> dict[str, bool]:
        planned = plan(DATA, *stages)
        names = [str(stage["name"]) for stage in stages]
        finish(planned, "test", *names)
        for name in names:
            write_metrics(planned, name, 3, reward=0.5)
        write_report(planned)
        return curves((planned.run_folder / "report.html").read_text(encoding="utf-8"))

    second = {**SFT, "name": "second", "from_model": "sft"}
    assert opened(SFT, second) == {"sft": False, "second": True}
    rl = {"kind": "grpo", "steps": 1, "prompts_per_step": 1, "completions_per_prompt": 2, "learning_rate": 1e-4}
    grpo = {"name": "grpo", "from_model": "base", "from_data": ["test"], "rewards": [{"kind": "math_answer"}], **rl}
    assert opened({**grpo, "sampling": {"temperature": 1.0, "max_tokens": 8}}, SFT) == {"grpo": True, "sft": False}


def test_bars_have_a_form_for_phones_that_is_cut_nowhere(page: str) -> None:
    assert "min-width: 520px" not in page
    pictures = re.findall(r'<div class="(wide|narrow)">(<svg.*?</svg>)</div>', page)
    assert [form for form, _ in pictures] == ["wide", "narrow"] * (len(pictures) // 2)
    assert pictures
    assert re.search(r"@media \(max-width: 560px\) \{ \.wide \{ display: none; \} \.narrow \{ display: block; \}", page)

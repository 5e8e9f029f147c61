"""`show`: the tokens of a stage's rows, and which of them are in the loss."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from qwen_align.align.commands import show
from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.rows import Chat, Completion, Labelled, Message, Pair, Problem, Row, to_json_line
from qwen_align.reward.verdict import Verdict

SAMPLING = {"temperature": 1.0, "max_tokens": 8}
SETTINGS = {"max_tokens": 256, "batch": 1, "epochs": 1, "learning_rate": 1e-4}
SFT: dict[str, Any] = {"name": "sft", "kind": "sft", "from_model": "base", "from_data": ["data"], **SETTINGS}
DPO: dict[str, Any] = {**SFT, "name": "dpo", "kind": "dpo", "beta": 0.1}
ROLLOUT: dict[str, Any] = {
    "name": "draws",
    "kind": "rollout",
    "from_model": "base",
    "from_data": "data",
    "completions_per_prompt": 1,
    "sampling": SAMPLING,
    "rewards": [{"kind": "math_answer"}],
}
ASKED = [Message(role="user", content="1+1?")]
PROMPT = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def plan(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., Plan]:
    """A plan of a data stage with these rows and of other stages on the tiny model."""

    def of(rows: list[Row], *stages: dict[str, Any], **settings: Any) -> Plan:
        (tmp_path / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))
        builder = {"kind": "local_file", "path": "rows.jsonl", "rows": "typed"}
        data = {"name": "data", "kind": "build_data", "builder": builder, **settings}
        path = write_recipe([data, *stages], models={"base": {"path": str(tiny_model)}})
        return make_plan(path, tmp_path)

    return of


def shown(planned: Plan, name: str, rows: int = 9, first: int = 0) -> list[Text]:
    return list(show.render_stage_rows(planned, name, rows=rows, first=first))


def parts(line: Text, style: str) -> str:
    """The text of a line that has this style."""
    return "".join(line.plain[span.start : span.end] for span in line.spans if span.style == style)


def chat(number: int, answer: str = "2") -> Chat:
    return Chat(id=f"c{number}", messages=[*ASKED, Message(role="assistant", content=answer, thinking="1+1=2")])


def problem() -> Problem:
    return Problem(id="p", messages=ASKED, gold="2", reward="math_answer", mode="no_think")


def test_trained_tokens_and_the_others_are_coloured_apart(plan: Callable[..., Plan]) -> None:
    head, line, legend = shown(plan([chat(1)], SFT), "sft")
    assert head.plain == "--- row 0: chat c1"
    assert parts(line, show.MASKED).replace("⏎\n", "\n") == PROMPT
    assert parts(line, show.TRAINED).replace("⏎\n", "\n") == "<think>\n1+1=2\n</think>\n\n2<|im_end|>"
    counted = line.plain.rpartition("  [")[2]
    total, trained = (int(word) for word in counted.split() if word.isdigit())
    assert 0 < trained < total
    assert legend.plain == "trained  seen, not trained"


def test_a_data_stage_is_shown_as_its_reader_renders_it(plan: Callable[..., Plan]) -> None:
    planned = plan([chat(1)], SFT)
    data, sft = ([line.plain for line in shown(planned, name)] for name in ("data", "sft"))
    assert data[:2] == ["1 rows: 1 chat", "tokens a row: p50 24, p90 24, p99 24, p100 24"]
    assert data[3:] == sft


def test_rows_are_chosen_by_number(plan: Callable[..., Plan]) -> None:
    planned = plan([chat(number, str(number)) for number in range(5)], SFT)
    heads = [line.plain for line in shown(planned, "sft", rows=2, first=3) if line.plain.startswith("---")]
    assert heads == ["--- row 3: chat c3", "--- row 4: chat c4"]
    for rows, first in [(0, 0), (-1, 0), (1, -1)]:
        with pytest.raises(RecipeError, match=f"--rows {rows} --first {first}: at least one row is shown"):
            shown(planned, "sft", rows=rows, first=first)


def test_pairs_show_both_sides(plan: Callable[..., Plan]) -> None:
    sides = [Message(role="assistant", content=answer, thinking="t") for answer in ("2", "3")]
    _, chosen, rejected, _ = shown(plan([Pair(id="p", messages=ASKED, chosen=sides[0], rejected=sides[1])], DPO), "dpo")
    assert parts(chosen, show.MASKED).replace("⏎\n", "\n") == PROMPT
    assert parts(chosen, show.TRAINED).endswith("2<|im_end|>")
    assert parts(rejected, show.REJECTED).endswith("3<|im_end|>")
    assert not parts(rejected, show.TRAINED)


def test_prompts_show_what_the_model_will_see(plan: Callable[..., Plan]) -> None:
    _, prompt, gold, _ = shown(plan([problem()], ROLLOUT), "draws")
    assert parts(prompt, show.MASKED).replace("⏎\n", "\n") == PROMPT + "<think>\n\n</think>\n\n"
    assert not parts(prompt, show.TRAINED)
    assert gold.plain == "gold: 2  reward: math_answer"


def completion(sample: int, text: str, **rest: Any) -> Completion:
    return Completion(
        prompt_id="p",
        sample=sample,
        prompt=ASKED,
        text=text,
        n_tokens=9,
        verdicts={"math_answer": Verdict(value=1.0, reason="correct")},
        **rest,
    )


def test_a_rollout_that_ran_shows_its_completions_and_verdicts(plan: Callable[..., Plan]) -> None:
    planned = plan([problem()], ROLLOUT)
    folder = planned.find_stages("draws")[0].folder.path
    folder.mkdir(parents=True)
    whole = completion(0, "<think>\na\n</think>\n\n2", finish_reason="stop")
    rows = [whole, completion(1, "<th", finish_reason="length")]
    (folder / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))
    (folder / "manifest.json").write_text(json.dumps({"summary": {}}))
    head, *_, _, said, verdicts, _, cut, _ = shown(planned, "draws")
    assert head.plain == "2 rows: 2 completion"
    assert parts(said, show.TRAINED).endswith("2<|im_end|>")
    assert verdicts.plain == "verdicts: math_answer: 1.0 (correct)"
    assert cut.plain == "<th  [cut at the token limit: not trained on]"


def test_what_a_rollout_has_yet_to_make_is_refused(plan: Callable[..., Plan]) -> None:
    pairs = {"name": "pairs", "kind": "build_data", "builder": {"kind": "pairs", "from_data": "draws"}}
    planned = plan([problem()], ROLLOUT, pairs, {**DPO, "from_data": ["pairs"]})
    for name in ("pairs", "dpo"):
        with pytest.raises(DataError, match=f"stage '{name}': its data is unknown until draws; run the recipe first"):
            shown(planned, name)


SAID = Message(role="assistant", content="2")
MODELESS: list[Row] = [
    Chat(id="c", messages=[*ASKED, SAID]),
    Chat(id="t", messages=[*ASKED, SAID], tools=[{"type": "function", "function": {"name": "add"}}]),
    Pair(id="p", messages=ASKED, chosen=SAID, rejected=Message(role="assistant", content="3")),
    Labelled(id="l", messages=ASKED, completion=SAID, label=True),
]


@pytest.mark.parametrize("row", MODELESS, ids=lambda row: row.id)
def test_a_data_row_without_mode_and_thinking_is_no_think(plan: Callable[..., Plan], row: Row) -> None:
    lines = shown(plan([row], {**DPO} if isinstance(row, Pair) else SFT), "data")
    said = [line.plain for line in lines]
    assert said[1].startswith("tokens a row: p50 ")
    first = lines[4]
    assert parts(first, show.TRAINED) == "2<|im_end|>"
    assert parts(first, show.MASKED).replace("⏎\n", "\n").endswith("<think>\n\n</think>\n\n")


def test_what_a_training_stage_would_refuse_is_refused_there(plan: Callable[..., Plan]) -> None:
    asked_to_think = Chat(id="c", messages=[*ASKED, SAID], mode="think")
    planned = plan([asked_to_think], {**SFT}, sieve={"thinking_fits_mode": False})
    with pytest.raises(RecipeError, match=r"row 'c': message 2: no thinking in mode think: .* under its `builder:`"):
        shown(planned, "sft")


def test_a_pair_that_a_stage_drops_is_noted_there(plan: Callable[..., Plan]) -> None:
    thinking = SAID.model_copy(update={"thinking": "1+1=2"})
    dropped = Pair(id="p", messages=ASKED, chosen=SAID, rejected=thinking)
    other = Pair(id="q", messages=ASKED, chosen=SAID, rejected=Message(role="assistant", content="3"))
    said = [line.plain for line in shown(plan([dropped, other], DPO), "dpo")]
    assert said[1].startswith("note: dropped: row 'p': rejected: thinks")
    assert said[2:4] == [to_json_line(dropped), "--- row 1: pair q"]


def test_a_data_row_that_cannot_be_rendered_is_printed_as_it_is(plan: Callable[..., Plan]) -> None:
    mixed = Chat(id="m", messages=[*chat(1).messages, *ASKED, SAID], mode="think")
    planned = plan([mixed, chat(1)], SFT, sieve={"thinking_fits_mode": False})
    said = [line.plain for line in shown(planned, "data")]
    assert said[:2] == ["2 rows: 2 chat", "1 of them cannot be rendered"]
    assert said[2] == "tokens a row: p50 24, p90 24, p99 24, p100 24"
    place = said.index("--- row 0: chat m")
    assert said[place + 1].startswith("note: cannot be rendered: row 'm': message 4: no thinking in mode think")
    assert said[place + 2] == to_json_line(mixed)
    assert said[place + 3] == "--- row 1: chat c1"


def test_a_completion_that_cannot_be_trained_is_printed_as_it_is(plan: Callable[..., Plan]) -> None:
    planned = plan([problem()], ROLLOUT)
    folder = planned.find_stages("draws")[0].folder.path
    folder.mkdir(parents=True)
    row = completion(0, "<think>\na\n</think>\n\n2", finish_reason="stop", mode="no_think", flag="/no_think")
    (folder / "rows.jsonl").write_text(to_json_line(row) + "\n")
    (folder / "manifest.json").write_text(json.dumps({"summary": {}}))
    said = [line.plain for line in shown(planned, "draws")]
    assert said[-3].startswith("note: cannot be trained: row 'p#0': has thinking, but its prompt asks for none")
    assert said[-2] == row.text


def test_a_stage_that_is_not_there_or_has_no_model_is_refused(plan: Callable[..., Plan]) -> None:
    with pytest.raises(RecipeError, match=r"no stage is called 'stf'\. Did you mean 'sft'\?"):
        shown(plan([chat(1)], SFT), "stf")
    with pytest.raises(DataError, match="stage 'data': no stage of this recipe has a model whose template could be"):
        shown(plan([chat(1)]), "data")


def test_colours_reach_a_terminal(
    plan: Callable[..., Plan], cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan([chat(1)], SFT)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    said = cli("show", tmp_path / "recipe.yaml", "sft")
    assert said.code == 0
    assert "\x1b[30;42m<|im_end|>" in said.out
    assert "\x1b[2m<|im_start|>" in said.out
    monkeypatch.undo()
    assert "\x1b[" not in cli("show", tmp_path / "recipe.yaml", "sft").out


def test_without_colours_the_mask_stands_in_marks() -> None:
    line = Text("seen ", style="").append("1", style=show.TRAINED).append("+2", style=show.TRAINED)
    line.append(" dim", style=show.MASKED).append("no", style=show.REJECTED).append(" end")
    assert show.mark_trained_text(line) == "seen «1+2» dim‹no› end"
    assert show.mark_trained_text(Text("plain")) == "plain"


def test_drops_of_a_stored_stage_are_those_of_its_manifest(plan: Callable[..., Plan]) -> None:
    planned = plan([chat(1)], SFT)
    folder = planned.find_stages("data")[0].folder.path
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text(to_json_line(chat(1)) + "\n")
    for dropped, said in (({}, None), ({"not en": 1, "duplicate": 2}, "3 dropped: 2 duplicate, 1 not en")):
        (folder / "manifest.json").write_text(json.dumps({"summary": {"rows": 1, "dropped": dropped}}))
        lines = [line.plain for line in shown(planned, "data")]
        assert [line for line in lines if "dropped" in line] == ([said] if said else [])

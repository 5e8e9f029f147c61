"""The Python API: recipes in memory have the keys and errors of files; runs are interrupted, resumed and typed."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pydantic import BaseModel
from rich.console import Console

import qwen_align
from qwen_align import Recipe, evaluate, load_model, plan, run
from qwen_align.align.api.given_values import FUNCTION_FIELD, ROW_FIELDS
from qwen_align.align.api.notebook_progress import NotebookProgress
from qwen_align.align.errors import DataError, RecipeError, StageError
from qwen_align.align.models.model_description import locate_model_files
from qwen_align.align.references import OutsideFile
from qwen_align.align.settings.base import Strict
from qwen_align.reward.python_file import load_user_function

ROWS = [{"prompt": f"What is {a}+{b}?", "gold": str(a + b)} for a in range(2, 5) for b in range(2, 4)]
READ_ROWS: dict[str, Any] = {"kind": "local_file", "rows": "problem", "reward": "python"}
ANY_GOLD = {"gold_is_usable": False}
SAMPLING = {"temperature": 1.0, "max_tokens": 8}
CPU = {"device": "cpu", "threads": 1}


def ends_with_gold(completion, gold):  # type: ignore[no-untyped-def]
    """1 for a completion whose last number is the gold, a half for another number."""
    import re

    numbers = re.findall(r"\d+", getattr(completion, "text", completion))
    return 1.0 if numbers[-1:] == [gold] else 0.5 * bool(numbers)


def build(rows: Any, **builder: Any) -> dict[str, Any]:
    """A recipe of one stage that reads rows."""
    stage = {"name": "questions", "kind": "build_data", "builder": {**READ_ROWS, "path": rows, **builder}}
    return {"name": "trial", "stages": [{**stage, "sieve": ANY_GOLD}]}


def asked(model: Path, rows: Any, reward: Any) -> dict[str, Any]:
    """A recipe that evaluates a model on rows."""
    stage = {"name": "evaluation", "kind": "evaluate", "from_model": "base", "from_data": ["questions"]}
    recipe = build(rows)
    recipe["stages"].append({**stage, "completions_per_prompt": 2, "sampling": SAMPLING, "rewards": [reward]})
    return {**recipe, "models": {"base": {"path": str(model)}}, "runtime": CPU}


def keys(planned: Any) -> list[str]:
    return [stage.key for stage in planned.stages]


# --- imports


def test_importing_the_package_imports_nothing_else() -> None:
    """But what keeps libraries from fetching kernels, which has to be there before them and imports nothing itself."""
    script = "import sys, qwen_align; print([name for name in sys.modules if name.startswith('qwen_align.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['qwen_align.align', 'qwen_align.align.hub_kernels']"


def test_a_plan_needs_no_torch(tiny_model: Path, tmp_path: Path) -> None:
    script = (
        "import sys, json\nfrom qwen_align import Recipe, plan\n"
        "print(plan(Recipe(json.loads(sys.argv[1])), home=sys.argv[2]))\n"
        "print(sorted({'torch', 'transformers', 'trl', 'pandas', 'numpy', 'IPython'} & set(sys.modules)))"
    )
    recipe = json.dumps(asked(tiny_model, ROWS, {"kind": "random"}))
    line = [sys.executable, "-c", script, recipe, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_names_are_listed_and_no_other_is_there() -> None:
    assert {"Recipe", "plan", "run", "evaluate", "load_model"} <= set(dir(qwen_align))
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = qwen_align.train  # type: ignore[attr-defined]


# --- a recipe in memory is the recipe of a file


def test_a_recipe_has_the_same_keys_however_it_is_given(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "reward.py").write_text(_source_of(ends_with_gold))
    reward = {"kind": "python", "file": "reward.py", "name": "ends_with_gold"}
    written = asked(tiny_model, "rows.jsonl", reward)
    text = yaml.safe_dump(written)
    (tmp_path / "recipe.yaml").write_text(text)
    of_file = plan(Recipe(tmp_path / "recipe.yaml"), home=tmp_path)
    given = asked(tiny_model, ROWS, ends_with_gold)
    forms = [
        str(tmp_path / "recipe.yaml"),
        Recipe(text, folder=tmp_path),
        Recipe(written, folder=tmp_path),
        Recipe(**written, folder=tmp_path),
        given,
        Recipe(**given),
        Recipe(asked(tiny_model, pd.DataFrame(ROWS), {"kind": "python", "file": ends_with_gold})),
        Recipe(asked(tiny_model, tuple(ROWS), {"kind": "python", "file": ends_with_gold, "name": "ends_with_gold"})),
    ]
    for form in forms:
        assert keys(plan(form, home=tmp_path)) == keys(of_file)
    changed = plan(given, home=tmp_path, overrides={"stages.questions.builder.path": ROWS[:-1]})
    assert not set(keys(changed)) & set(keys(of_file)), "other rows have other keys"


def _source_of(function: Callable[..., Any]) -> str:
    lines = Path(__file__).read_text(encoding="utf-8").split("\n\n\n")
    (found,) = [text for text in lines if text.startswith(f"def {function.__name__}(")]
    return found + "\n"


def test_what_is_wrong_is_said_as_of_a_file(tmp_path: Path) -> None:
    wrong = build("rows.jsonl", colums={})
    wrong["stages"].append({"name": "sft", "kind": "sft", "from_model": "base", "batch": "8"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(wrong))
    messages = []
    for source in (tmp_path / "recipe.yaml", wrong):
        with pytest.raises(RecipeError) as error:
            Recipe(source, folder=tmp_path)
        messages.append([line.removeprefix(f"{tmp_path}/").partition(": ")[2] for line in str(error.value).split("\n")])
    assert messages[0] == messages[1]
    assert "stage 'questions': builder: 'colums' is no setting here. Did you mean 'columns'?" in messages[0]


def test_a_reference_to_nothing_is_refused_with_the_recipes_name(tiny_model: Path, tmp_path: Path) -> None:
    recipe = asked(tiny_model, ROWS, "random")
    recipe["stages"][1] |= {"from_data": ["question"], "rewards": [{"kind": "random"}]}
    with pytest.raises(RecipeError, match=r"^Recipe\(\.\.\.\): stage 'evaluation': .*Did you mean 'questions'"):
        plan(recipe, home=tmp_path)


@pytest.mark.parametrize("arguments", [((), {}), (({"name": "x"},), {"stages": []})])
def test_a_recipe_is_one_source_or_sections(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="sections as keywords"):
        Recipe(*arguments[0], **arguments[1])


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: no such recipe"):
        Recipe("absent.yaml")


def test_overrides_and_the_tiny_form_are_those_of_the_command_line(tmp_path: Path) -> None:
    recipe = Recipe({**build(ROWS), "tiny": {"stages.questions.limit": 2}})
    base, seeded = plan(recipe, home=tmp_path), plan(recipe, home=tmp_path, overrides={"seed": 1})
    assert keys(seeded) != keys(base)
    assert keys(plan(recipe, home=tmp_path, overrides=["seed=1"])) == keys(seeded)
    tiny = plan(recipe, home=tmp_path, tiny=True)
    assert tiny.name == "trial_tiny"
    assert keys(tiny) == keys(plan(recipe, home=tmp_path, overrides={"stages.questions.limit": 2}))
    with pytest.raises(RecipeError, match=r"overrides: 'stages\.question': no stage is called 'question'"):
        plan(recipe, home=tmp_path, overrides={"stages.question.limit": 2})


def test_a_matrix_may_hold_rows(tmp_path: Path) -> None:
    recipe = build("unused.jsonl") | {"matrix": {"stages.questions.builder.path": [ROWS, ROWS[:3]]}}
    planned = plan(recipe, home=tmp_path)
    assert [stage.name for stage in planned.stages] == ["questions.path=0", "questions.path=1"]
    assert planned.stages[0].key == plan(build(ROWS), home=tmp_path).stages[0].key


def test_a_plan_prints_what_is_stored(tmp_path: Path) -> None:
    planned = plan(build(ROWS), home=tmp_path)
    assert repr(planned).startswith("Plan 'trial': 1 stage, 1 to run")
    assert planned.stages[0].key[:16] in repr(planned)
    run(planned, progress=False)
    assert planned.stages[0].is_stored
    assert "stored" in repr(planned)
    with pytest.raises(TypeError, match=r"give them to plan\(\)"):
        run(planned, home=tmp_path)


# --- rows


def _file_fields(settings: type[BaseModel], met: set[type]) -> Iterator[str]:
    for name, one in settings.model_fields.items():
        if "OutsideFile" in str(one.annotation):
            yield name
    for inner in settings.__subclasses__():
        if inner not in met:
            met.add(inner)
            yield from _file_fields(inner, met)


def test_rows_and_functions_may_stand_wherever_a_file_of_them_is_read() -> None:
    assert issubclass(OutsideFile, str)
    neither_rows_nor_python = {"deepspeed", "tokenizer"}
    found = set(_file_fields(Strict, set()))
    assert found - neither_rows_nor_python <= {*ROW_FIELDS, FUNCTION_FIELD, "data"}  # data: of `qwen-align build` alone


def test_rows_are_written_once_and_again_if_damaged(tmp_path: Path) -> None:
    plan(build(ROWS), home=tmp_path)
    (path,) = (tmp_path / "inputs").glob("*/rows.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    before = path.stat().st_mtime_ns
    plan(build([dict(row) for row in ROWS]), home=tmp_path)
    assert path.stat().st_mtime_ns == before
    path.write_text("damaged")
    plan(build(ROWS), home=tmp_path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS


def test_cells_of_a_data_frame_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a?", "b?"], "gold": ["1", None], "n": [1.5, math.nan], "when": pd.NaT})
    frame["tags"] = [["x"], ["y", "z"]]
    frame["count"] = pd.array([3, pd.NA], dtype="Int64")
    plan(build(frame), home=tmp_path)
    (path,) = (tmp_path / "inputs").glob("*/rows.jsonl")
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"prompt": "a?", "gold": "1", "n": 1.5, "when": None, "tags": ["x"], "count": 3}
    assert second == {"prompt": "b?", "gold": None, "n": None, "when": None, "tags": ["y", "z"], "count": None}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([ROWS[0], {"prompt": "x", "gold": {1, 2}}], r"stage 'questions': builder\.path: row 2: JSON cannot hold it"),
        (pd.DataFrame({"prompt": ["x"], "when": [pd.Timestamp(0)]}), r"row 1: .*Timestamp"),
        (pd.DataFrame([["x", "y"]], columns=["prompt", "prompt"]), r"column 'prompt'.*no other column"),
        (pd.DataFrame([["x", "y"]]), r"column 0: a column's name must be a text"),
    ],
)
def test_rows_that_json_cannot_hold_are_refused_by_place(rows: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Recipe(build(rows))


def test_bad_rows_are_refused_or_counted_and_columns_left_out_as_of_a_file(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "no gold?", "gold": math.nan}, "no object", {"prompt": 7, "gold": "1"}]
    rows[0] = {**ROWS[0], "comment": "nothing reads it"}
    with pytest.raises(DataError, match=r"rows\.jsonl:7: is not JSON: NaN"):
        run(build(rows), home=tmp_path, progress=False)
    done = run(build(rows, on_bad_row="drop"), home=tmp_path, progress=False)
    summary = done["questions"].summary
    assert summary["rows"] == len(ROWS)
    assert summary["dropped"] == {"not JSON": 1, "not an object": 1, "wrong type": 1}
    assert summary["conversion"]["columns_left_out"] == {"comment": 1}
    ids = [json.loads(line)["id"] for line in (done["questions"].folder / "rows.jsonl").read_text().splitlines()]
    assert ids[:2] == ["rows:1", "rows:2"]


# --- functions


def test_a_function_runs_from_a_file_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    plan(asked(tiny_model, ROWS, ends_with_gold), home=tmp_path)
    (path,) = (tmp_path / "inputs").glob("*/ends_with_gold_function.py")
    function = load_user_function(path, "ends_with_gold")
    assert [function(text, "4") for text in ("so 4", "5", "none")] == [1.0, 0.5, 0.0]


def test_a_function_defined_in_a_function_runs_if_it_needs_nothing_of_it(tmp_path: Path, tiny_model: Path) -> None:
    def is_long(completion: object, gold: object) -> bool:
        return len(str(completion)) > max(len(part) for part in ("a", "bb"))

    plan(asked(tiny_model, ROWS, is_long), home=tmp_path)
    (path,) = (tmp_path / "inputs").glob("*/is_long_function.py")
    assert load_user_function(path, "is_long")("abc", None) is True


def _uses_a_module(completion: str, gold: str) -> float:
    return math.sqrt(len(completion))


def _uses_an_annotation(completion: "str", gold: Any) -> float:
    return 1.0


def _uses_a_default(completion: str, gold: str = str(ROWS)) -> float:
    return 1.0


def _refers_to_itself(completion: str, gold: str) -> float:
    return 0.0 if not completion else _refers_to_itself(completion[1:], gold)


def _closure() -> Callable[[str, str], float]:
    threshold = len(ROWS)

    def judge(completion: str, gold: str) -> float:
        return float(len(completion) > threshold)

    return judge


class Judge:
    def judge(self, completion: str, gold: str) -> float:
        return 1.0

    def __call__(self, completion: str, gold: str) -> float:
        return 1.0


def _imports_what_its_module_imports_too(completion: str, gold: str) -> float:
    import math

    return math.sqrt(len(completion)) if completion else 0.0


def _has_a_class_and_a_loop(completion: str, gold: str) -> float:
    class Counter:
        start = 1
        end = start + 1

    return sum(float(x) for x in range(Counter.end) if (y := x) or y == gold)


@pytest.mark.parametrize("function", [_refers_to_itself, _has_a_class_and_a_loop, _imports_what_its_module_imports_too])
def test_a_function_that_stands_alone_is_taken(function: Any, tiny_model: Path) -> None:
    Recipe(asked(tiny_model, ROWS, function))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda completion, gold: 1.0, "a lambda"),
        (_closure(), "'judge' is a closure: it uses threshold of the function around it"),
        (_uses_a_module, "'_uses_a_module' uses math from outside"),
        (_uses_an_annotation, "uses Any from outside"),
        (_uses_a_default, "uses ROWS from outside"),
        (Judge().judge, "method is no function with a name and a source"),
        (Judge(), "Judge is no function"),
        (len, "builtin_function_or_method is no function"),
        (eval("judge", {**globals(), **(exec("def judge(c, g): return 1", space := {}) or space)}), "not to be had"),
    ],
)
def test_a_function_that_needs_more_than_itself_is_refused(function: Any, says: str, tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match=says) as error:
        Recipe(asked(tiny_model, ROWS, function))
    assert str(error.value).startswith("Recipe(...): stage 'evaluation': rewards[0].file: ")
    *_, first, second = str(error.value).split("\n")
    assert first.strip().startswith("%%writefile my_")
    assert json.loads(second)["file"] == first.split()[1]


def test_a_source_that_is_not_what_was_run_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def judge(completion, gold):\n    return 1.0\n")
    function = load_user_function(file, "judge")
    file.write_text("def judge(completion, gold):\n    return len(completion)\n")
    with pytest.raises(RecipeError, match="its file has changed since"):
        Recipe(asked(tiny_model, ROWS, function))


def test_a_function_where_none_can_stand_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"builder: a function can stand in a list of rewards"):
        Recipe(name="x", stages=[{"name": "a", "kind": "build_data", "builder": ends_with_gold}])


# --- runs


def test_a_run_in_another_thread_handles_no_signals(tmp_path: Path) -> None:
    results: list[Any] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: results.append(run(build(ROWS), home=tmp_path, progress=False)))
    thread.start()
    thread.join()
    assert results[0]["questions"].summary["rows"] == len(ROWS)
    assert signal.getsignal(signal.SIGINT) is before


def test_results_are_those_of_all_stages_and_stored_ones_do_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(build(ROWS), home=tmp_path)
    again = run(build(ROWS), home=tmp_path)
    assert again == first
    assert "stored" in capsys.readouterr().out.splitlines()[-1]
    assert first["questions"].kind == "build_data"
    assert (first["questions"].folder / "rows.jsonl").exists()
    assert first.evaluations == first.to_rows() == []
    with pytest.raises(RecipeError, match=r"no stage is called 'question'\. Did you mean 'questions'"):
        _ = first["question"]


def test_a_stage_that_fails_raises_what_it_says(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage 'questions': .*\nlog: "):
        run(build(ROWS, expect_rows=3), home=tmp_path, progress=False)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(StageError, match="cannot be written"):
        plan(build(ROWS), home=blocked)


def test_load_model_says_what_there_is(tmp_path: Path) -> None:
    done = run(build(ROWS), home=tmp_path, progress=False)
    with pytest.raises(RecipeError, match="a stage of kind build_data makes no model"):
        load_model(done, "questions")
    with pytest.raises(RecipeError, match="no stage is called 'sft'; known: questions"):
        load_model(tmp_path / "runs" / "trial", "sft")
    with pytest.raises(RecipeError, match="say which stage's model is wanted: questions"):
        load_model(done)
    with pytest.raises(RecipeError, match="no such folder"):
        load_model(tmp_path / "absent")
    with pytest.raises(RecipeError, match="holds no model"):
        load_model(tmp_path)


def test_evaluate_refuses_what_it_does_not_know(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(TypeError, match="no argument 'sample'; it has name, thinking_switch, seed, runtime"):
        evaluate(tiny_model, ROWS, sampling=SAMPLING, home=tmp_path, sample=3)
    with pytest.raises(RecipeError, match=r"stage 'evaluation': sampling\.max_tokens: "):
        evaluate(tiny_model, ROWS, sampling={"temperature": 1.0}, home=tmp_path)
    with pytest.raises(TypeError, match="columns"):
        evaluate(tiny_model, {"kind": "arithmetic"}, columns={"gold": "x"}, sampling=SAMPLING, home=tmp_path)


def test_a_notebook_shows_how_far_the_stage_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Display:
        def update(self, data: dict[str, str], *, raw: bool) -> None:
            shown.append(data["text/plain"])

    def show(data: dict[str, str], *, raw: bool, display_id: bool) -> Display:
        return Display()

    monkeypatch.setattr("IPython.display.display", show)
    planned = plan(build(ROWS), home=tmp_path).pipeline_plan
    (stage,) = planned.stages
    stage.folder.path.mkdir(parents=True)
    with NotebookProgress(Console(file=io.StringIO()), planned) as progress:
        progress.on_stage_started(stage)
        progress.on_stage_progress(stage)
        state = {"done": 3, "total": 9, "unit": "steps", "seconds": 1.0, "done_here": 3, "tokens_here": 0}
        (stage.folder.path / "progress.json").write_text(json.dumps(state))
        progress.on_stage_progress(stage)
        progress.on_stage_progress(stage)
    assert shown == ["questions: 3/9 steps  ETA 0:02", ""]


# --- with models


TRACES = {
    "name": "traces",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "trace", "n": 64, "steps": [1]},
}
SFT: dict[str, Any] = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["traces"],
    "max_tokens": 256,
    "batch": 4,
    "epochs": 1,
    "learning_rate": 1e-3,
}


def trained(model: Path, **settings: Any) -> dict[str, Any]:
    return {
        "name": "trained",
        "models": {"base": {"path": str(model)}},
        "runtime": {**CPU, "checkpoint_every": 10},
        "stages": [TRACES, {**SFT, **settings}],
    }


@pytest.mark.slow
def test_a_stage_is_evaluated_and_loaded_as_the_store_has_it(tiny_model: Path, tmp_path: Path) -> None:
    recipe = trained(tiny_model, lora={"rank": 4, "alpha": 8})
    within = asked(tiny_model, ROWS, ends_with_gold)["stages"]
    within[1]["from_model"] = "sft"
    del within[0]["sieve"]
    recipe["stages"] += within
    results = run(recipe, home=tmp_path, progress=False)

    (evaluation,) = results.evaluations
    assert (evaluation.model, evaluation.data, evaluation.n_questions, evaluation.completions_per_prompt) == (
        "sft",
        "questions",
        6,
        2,
    )
    means = list(evaluation.question_means.values())
    assert evaluation.accuracy == pytest.approx(sum(means) / len(means))
    table = pd.DataFrame(evaluation.completions)
    assert len(table) == 12
    right = (table["value"] >= 1).groupby(table["question"]).mean()
    assert right.to_dict() == pytest.approx(evaluation.question_means)
    by_question = table.groupby("question")["value"].mean()
    assert evaluation.mean_reward == pytest.approx(by_question.mean())
    assert evaluation.mean_reward > evaluation.accuracy, "some are partly right"
    assert evaluation.no_verdict == 0
    assert set(table["gold"]) == {row["gold"] for row in ROWS}
    assert pd.DataFrame(results.to_rows())["accuracy"].tolist() == [evaluation.accuracy]
    assert "sft" in repr(results)

    alone = evaluate(
        results["sft"],
        ROWS,
        reward=ends_with_gold,
        completions_per_prompt=2,
        sampling=SAMPLING,
        home=tmp_path,
        runtime=CPU,
    )
    assert alone.file == evaluation.file, "the same stage, from the store"
    assert (alone.model, alone.question_means) == ("sft", evaluation.question_means)
    of_stage = evaluate(
        tiny_model,
        results["questions"],
        reward=ends_with_gold,
        completions_per_prompt=1,
        sampling=SAMPLING,
        home=tmp_path,
    )
    assert (of_stage.model, of_stage.n_questions) == ("tiny", 6)

    import torch
    from peft import PeftModel

    from qwen_align.align.models import loading

    ids = torch.arange(96).reshape(3, 32)
    folder = results["sft"].folder
    files = locate_model_files(folder)
    with torch.inference_mode():
        stored = loading.load_model(folder)(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(loading.load_model(tiny_model), str(files.adapters[0])).eval()
        with_adapter = adapted(input_ids=ids).logits
        for source in ((results, "sft"), (tmp_path / "runs" / "trained", "sft"), (folder,), (results["sft"],)):
            model, tokenizer = load_model(*source)
            logits = model(input_ids=ids).logits
            assert (logits - stored).abs().max() < 1e-5
            assert (logits - with_adapter).abs().max() < 1e-5
    assert not any("lora" in name for name, _ in model.named_parameters()), "adapters are merged"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "2+2?"}], tokenize=False)
    assert "2+2?" in prompt


def _interrupt(progress: Path, done: int) -> None:
    """Sends SIGINT to this process, as Ctrl-C does, once a stage has done so many steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if json.loads(progress.read_text())["done"] >= done:
                os.kill(os.getpid(), signal.SIGINT)
                return
        except (FileNotFoundError, ValueError):
            pass
        time.sleep(0.01)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(tiny_model: Path, tmp_path: Path) -> None:
    recipe = Recipe(trained(tiny_model, epochs=6))
    planned = plan(recipe, home=tmp_path / "interrupted")
    folder = planned.stages[1].folder
    handler = signal.getsignal(signal.SIGINT)
    interrupter = threading.Thread(target=_interrupt, args=(folder / "progress.json", 12))
    interrupter.start()
    with pytest.raises(KeyboardInterrupt, match="run again to go on"):
        run(planned, progress=False)
    interrupter.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert planned.stages[0].is_stored
    assert not planned.stages[1].is_stored
    with pytest.raises(RecipeError, match="has not finished"):
        load_model(planned, "sft")
    assert list((folder / "checkpoints").iterdir()), "it saved what it had"

    results = run(planned, progress=False)
    whole = run(recipe, home=tmp_path / "whole", progress=False)
    metrics = [(done["sft"].folder / "metrics.jsonl").read_text() for done in (results, whole)]
    losses = [[json.loads(line).get("loss") for line in text.splitlines()] for text in metrics]
    assert losses[0] == losses[1]
    weights = [(done["sft"].folder / "model" / "model.safetensors").read_bytes() for done in (results, whole)]
    assert weights[0] == weights[1]

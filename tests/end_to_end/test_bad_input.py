"""What users get wrong: a short message that says where, the right exit code, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

LINES_OF_A_SCREEN = 25
PROBLEMS: dict[str, Any] = {
    "name": "problems",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]},
}
TRACES: dict[str, Any] = {**PROBLEMS, "name": "traces", "builder": {**PROBLEMS["builder"], "rows": "trace"}}
FILE: dict[str, Any] = {
    "name": "rows",
    "kind": "build_data",
    "builder": {"kind": "local_file", "path": "rows.jsonl", "rows": "problem"},
}
SFT: dict[str, Any] = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["traces"],
    "max_tokens": 128,
    "batch": 1,
    "epochs": 1,
    "learning_rate": 1e-4,
}


class Said:
    """What is asked of every refusal, wherever it comes from."""

    def __init__(self, code: int, out: str, err: str, home: Path) -> None:
        self.code, self.err = code, err
        assert "Traceback" not in out + err
        assert len(err.splitlines()) <= LINES_OF_A_SCREEN
        assert err.startswith("qwen-align: ")
        left = [path for path in home.rglob("*") if path.name.startswith(".") and path != home / "runs" / ".lease"]
        assert not left, "files that were being written"
        for manifest in home.glob("store/*/manifest.json"):
            assert json.loads(manifest.read_text())["key"].startswith(manifest.parent.name.rpartition("-")[2])


@pytest.fixture
def refusal(
    tiny_model: Path, tmp_path: Path, cli: Callable[..., Any], write_recipe: Callable[..., Path]
) -> Callable[..., Said]:
    """How a command refuses a recipe of these stages."""

    def of(command: str, *stages: dict[str, Any], model: Path = tiny_model, home: Path = tmp_path / "home") -> Said:
        home.mkdir(exist_ok=True)
        recipe = write_recipe(list(stages), models={"base": {"path": str(model)}})
        said = cli(command, recipe, home=home)
        return Said(*said, home)

    return of


def is_untouched(home: Path) -> bool:
    return list(home.iterdir()) == []


WRONG_RECIPES = [
    ([TRACES, {**SFT, "lerning_rate": 1}], "stage 'sft': 'lerning_rate' is no setting here. Did you mean 'learni"),
    ([TRACES, {**SFT, "kind": "stf"}], "stage 'sft': kind 'stf' is unknown. Did you mean 'sft'?"),
    ([TRACES, {**SFT, "from_data": ["trace"]}], "from_data[0]: 'trace' is no stage or model. Did you mean 'traces'?"),
    ([TRACES, {**SFT, "from_data": ["base"]}], "from_data[0]: 'base' makes a model, but data is wanted here"),
    ([TRACES, {**SFT, "from_model": "sft"}], "stages wait for each other in a circle: sft -> sft"),
    ([TRACES, SFT, SFT], "'sft' is the name of two stages or models"),
    ([FILE], "stage 'rows': builder.path: "),
    ([TRACES, {**SFT, "learning_rate": -1}], "learning_rate: must be above 0; found -1"),
]


@pytest.mark.parametrize("command", ["check", "run", "report"])
@pytest.mark.parametrize(("stages", "message"), WRONG_RECIPES)
def test_a_wrong_recipe_is_refused_before_anything_is_written(
    refusal: Callable[..., Said], tmp_path: Path, command: str, stages: list[dict[str, Any]], message: str
) -> None:
    said = refusal(command, *stages)
    assert said.code == 2
    assert f"{tmp_path / 'recipe.yaml'}: " in said.err
    assert message in said.err
    assert is_untouched(tmp_path / "home")


def test_every_command_that_reads_a_recipe_says_when_there_is_none(cli: Callable[..., Any], tmp_path: Path) -> None:
    for command in (["check"], ["run"], ["report"], ["show", "sft"]):
        said = cli(command[0], tmp_path / "none.yaml", *command[1:])
        assert said.code == 2
        where = f"qwen-align: {tmp_path / 'none.yaml'}: "
        assert said.err == where + "no such recipe; `qwen-align recipes` lists the shipped ones\n"
    assert list(tmp_path.iterdir()) == []


def test_a_data_file_that_is_not_there_is_the_recipes_fault(refusal: Callable[..., Said], tmp_path: Path) -> None:
    said = refusal("run", FILE)
    assert said.code == 2
    assert f"stage 'rows': builder.path: {tmp_path / 'rows.jsonl'}: no such file; a relative path starts" in said.err
    (tmp_path / "rows.jsonl").mkdir()
    assert "rows.jsonl: Is a directory" in refusal("run", FILE).err
    assert is_untouched(tmp_path / "home")


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("check", '{"prompt": "1+1?", "gold": "2"}\n{"prompt": "1+2?", "gold": \n', "rows.jsonl:2: is not JSON"),
        ("run", '{"prompt": "1+1?", "gold": "2"}\n{"prompt": "1+2?", "gold": \n', "rows.jsonl:2: is not JSON"),
        ("check", '{"prompt": "1+1?", "gold": "2"}\n\n{"prompt": "1+2?"}\n', "rows.jsonl:3: 'gold' is missing"),
        ("check", '{"prompt": "1+1?", "gold": "2"}\n[1]\n', "rows.jsonl:2: is "),
        ("check", '[{"prompt": "1+1?", "gold": "2"}, 7]', "rows.jsonl: row 2: is int 7, not an object"),
        ("check", "", "no row is left; dropped: none, the builder made no row"),
        ("run", "", "no row is left; dropped: none, the builder made no row"),
        ("check", "\n\n", "no row is left; dropped: none, the builder made no row"),
        ("check", '{"prompt": "1+1?", "gold": ""}\n', "no row is left; dropped: {'unusable gold': 1}"),
    ],
)
def test_wrong_rows_are_named_by_file_and_line(
    refusal: Callable[..., Said], tmp_path: Path, command: str, content: str, message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    said = refusal(command, FILE)
    assert said.code == 3
    assert said.err.startswith("qwen-align: stage 'rows': ")
    assert message in said.err
    assert not list((tmp_path / "home").glob("store/*/manifest.json"))
    assert not list((tmp_path / "home").glob("store/*/rows.jsonl"))
    assert command == "run" or is_untouched(tmp_path / "home")


@pytest.mark.slow(seconds=2)
def test_a_row_put_right_lets_the_run_go_on(
    refusal: Callable[..., Said], cli: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1?"}\n')
    assert refusal("run", PROBLEMS, FILE).code == 3
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1?", "gold": "2"}\n')
    said = cli("run", tmp_path / "recipe.yaml", home=tmp_path / "home")
    assert said.code == 0
    assert "problems  build_data     stored" in said.out, "what was well the first time is not done again"
    assert "rows 1" in said.out


def broken_model(tiny_model: Path, folder: Path, *without: str, **files: str) -> Path:
    """A copy of the model without some files and with others written anew (`_` in a name is its dot)."""
    shutil.copytree(tiny_model, folder)
    for name in without:
        (folder / name).unlink()
    for name, text in files.items():
        (folder / name.replace("_jinja", ".jinja").replace("_json", ".json")).write_text(text)
    return folder


ONE_BY_ONE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
NOT_STABLE = ONE_BY_ONE + "{% if add_generation_prompt %}A{% endif %}"
WRONG_MODELS: list[tuple[tuple[str, ...], dict[str, str], str]] = [
    (("tokenizer.json",), {}, "has no tokenizer.json"),
    (("config.json",), {}, "it has no config.json; a model folder in Hugging Face form is wanted"),
    (("model.safetensors",), {}, "it has no *.safetensors; a model folder in Hugging Face form is wanted"),
    (("chat_template.jinja",), {}, "has no chat template"),
    ((), {"chat_template_jinja": "{% for %}"}, "chat_template.jinja: not a Jinja template"),
    ((), {"chat_template_jinja": NOT_STABLE}, "chat_template.jinja: not prefix-stable"),
    ((), {"chat_template_jinja": "{{ raise_exception('no') }}"}, "the template refuses these messages: no"),
    ((), {"tokenizer_config_json": "{"}, "base: "),
    ((), {"config_json": '{"vocab_size": 50}'}, "ids up to 399, but the model has embeddings for 50 (vocab_size"),
    ((), {"config_json": '{"text_config": {"vocab_size": 50}}'}, "has embeddings for 50"),
    ((), {"config_json": '{"eos_token_id": 7}', "generation_config_json": "{}"}, "the model stops at id 7 ("),
    ((), {"config_json": "{}", "generation_config_json": '{"eos_token_id": [7, 8]}'}, "the model stops at id 7 ("),
]


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(("without", "files", "message"), WRONG_MODELS)
def test_a_model_that_cannot_be_trained_is_refused_before_its_data_is_built(
    refusal: Callable[..., Said],
    tiny_model: Path,
    tmp_path: Path,
    command: str,
    without: tuple[str, ...],
    files: dict[str, str],
    message: str,
) -> None:
    said = refusal(command, TRACES, SFT, model=broken_model(tiny_model, tmp_path / "model", *without, **files))
    assert said.code == 2
    assert "models: base: " in said.err
    assert message in said.err
    assert is_untouched(tmp_path / "home")


def test_a_model_that_is_not_there_is_refused(refusal: Callable[..., Said], tmp_path: Path) -> None:
    said = refusal("check", TRACES, SFT, model=tmp_path / "none")
    assert said.code == 2
    assert f"models: base: {tmp_path / 'none'}: no such folder" in said.err


def test_a_model_that_only_stored_stages_read_is_not_asked_for_a_tokenizer(
    refusal: Callable[..., Said], cli: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    model = broken_model(tiny_model, tmp_path / "model", "tokenizer.json")
    assert refusal("run", TRACES, SFT, model=model).code == 2
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "stages": [TRACES]}))
    assert cli("run", tmp_path / "recipe.yaml", home=tmp_path / "home").code == 0


# --- disks: a file system of our own, mounted where only its process sees it

ON_A_DISK = """
set -e
mount -t tmpfs -o {options} tmpfs "$1"
{before}
"$2" -m qwen_align.cli run "$3" --home "$1" && code=$? || code=$?
cp -r "$1" "$4"
exit $code
"""


def run_on_a_disk(tmp_path: Path, recipe: Path, *, options: str, before: str = "") -> Said:
    """A run whose home is a tmpfs; what it left there is copied to `left`."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0:
        pytest.skip("needs `unshare -rm`: a mount that only the test sees")
    home, left = tmp_path / "home", tmp_path / "left"
    home.mkdir()
    script = ON_A_DISK.format(options=options, before=before)
    line = ["unshare", "-rm", "bash", "-c", script, "-", str(home), sys.executable, str(recipe), str(left)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return Said(done.returncode, done.stdout, done.stderr, left)


@pytest.mark.slow(seconds=2)
def test_a_disk_that_fills_up_while_a_stage_writes(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    builder = {**TRACES["builder"], "n": 20_000, "steps": [3, 4, 5]}  # some 6 MB of rows
    recipe = write_recipe([PROBLEMS, {**TRACES, "builder": builder}])
    said = run_on_a_disk(tmp_path, recipe, options="size=2M")
    assert said.code == 4
    assert "stage 'traces': " in said.err
    assert "No space left on device" in said.err
    left = {path.parent.name: path for path in (tmp_path / "left").glob("store/*/manifest.json")}
    assert len(left) == 1, "the stage before is whole, the one that failed has no manifest"
    assert len(list((tmp_path / "left").glob("store/*/rows.jsonl"))) == 1


def test_a_disk_that_is_full_from_the_start(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    fill = 'head -c 4000000 /dev/zero 2>/dev/null > "$1/fill" || true'
    said = run_on_a_disk(tmp_path, write_recipe([PROBLEMS]), options="size=2M", before=fill)
    assert said.code == 4
    assert "No space left on device" in said.err
    assert not list((tmp_path / "left").glob("store/*/*.json*"))


def test_a_home_that_cannot_be_written(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    said = run_on_a_disk(tmp_path, write_recipe([PROBLEMS]), options="ro")
    assert said.code == 4
    assert f"{tmp_path / 'home'}: cannot be written; name another folder with --home" in said.err


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root; the read-only mount above does")
def test_a_home_without_permission(refusal: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o500)
    said = refusal("run", PROBLEMS)
    assert said.code == 4
    assert "cannot be written; name another folder with --home" in said.err

"""A stored stage whose files are no longer what it wrote is named before another stage reads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_align import cli as command_line
from qwen_align.align.errors import StageError
from qwen_align.align.store.files import compute_sha256
from qwen_align.align.store.verify_inputs import InputVerifier

BUILDERS = {
    "problems": {"kind": "arithmetic", "rows": "problem", "n": 5, "steps": [1]},
    "mixed": {"kind": "mixture", "sources": [{"from_data": "problems"}]},
}
STAGES = [{"name": name, "kind": "build_data", "builder": builder} for name, builder in BUILDERS.items()]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the problems are stored."""
    home = tmp_path_factory.mktemp("stored")
    (home / "recipe.yaml").write_text(yaml.safe_dump({"name": "trial", "stages": STAGES[:1]}))
    assert command_line.main(["run", str(home / "recipe.yaml"), "--home", str(home)]) == 0
    return home


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip, "rows.jsonl is not what was written"),
        *(
            pytest.param(damage, what, marks=pytest.mark.slow(seconds=2))
            for damage, what in [
                (lambda path: path.write_bytes(path.read_bytes()[:-3]), "rows.jsonl is not what was written"),
                (lambda path: path.unlink(), "rows.jsonl is missing"),
                (lambda path: path.with_name("manifest.json").write_text('{"key": '), "manifest.json: cannot be read"),
            ]
        ),
    ],
)
def test_damaged_rows_are_noticed_and_can_be_made_again(
    stored: Path,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    cli: Callable[..., Any],
    damage: Callable[[Path], Any],
    what: str,
) -> None:
    shutil.copytree(stored / "store", tmp_path / "store")
    (folder,) = tmp_path.glob("store/build_data-*")
    rows = (folder / "rows.jsonl").read_bytes()
    damage(folder / "rows.jsonl")
    recipe = write_recipe(STAGES)
    said = cli("run", recipe)
    assert said.code == 4
    assert what in said.err
    assert str(folder) in said.err
    assert len(list(tmp_path.glob("store/build_data-*/rows.jsonl"))) <= 1, "nothing was made of it"
    assert cli("run", recipe, "--force", "problems").code == 0
    assert (folder / "rows.jsonl").read_bytes() == rows


def test_what_a_kill_left_of_a_finished_stage_is_cleared_away(
    tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    recipe = write_recipe(STAGES[:1])
    cli("run", recipe)
    (folder,) = tmp_path.glob("store/build_data-*")
    (folder / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    assert cli("run", recipe).code == 0
    assert not (folder / "checkpoints").exists()


def write_stage(folder: Path, name: str, content: str) -> Path:
    """A stored stage with one file."""
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(content)
    return folder


def finish(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    outputs = {name: compute_sha256(folder / name) for name in names}
    (folder / "manifest.json").write_text(json.dumps({"outputs": outputs}))


def test_adapters_below_are_looked_at_too_and_each_folder_once(tmp_path: Path) -> None:
    sft = write_stage(tmp_path / "sft-1", "model/model.safetensors", "weights")
    dpo = write_stage(tmp_path / "dpo-1", "adapter/adapter_model.safetensors", "weights")
    grpo = write_stage(tmp_path / "grpo-1", "adapter/adapter_model.safetensors", "weights")
    below = {"base": "../sft-1/model", "adapters": ["../dpo-1/adapter", "adapter"]}
    (grpo / "model.json").write_text(json.dumps(below))
    for folder in (sft, dpo, grpo):
        finish(folder)
    names = {folder.resolve(): folder.name.partition("-")[0] for folder in (sft, dpo, grpo)}
    InputVerifier(names).verify_folder(grpo)
    for folder in (sft, dpo):
        (file,) = folder.rglob("*.safetensors")
        looked = InputVerifier(names)
        looked.verify_folder(folder)
        flip(file)
        looked.verify_folder(folder)  # seen already
        with pytest.raises(StageError, match=rf"stage '{names[folder.resolve()]}'.*safetensors is not what was writ"):
            InputVerifier(names).verify_folder(grpo)
        flip(file)
    InputVerifier({}).verify_folder(tmp_path / "elsewhere")  # a model from outside


def test_the_folder_of_a_finished_stage_is_looked_at_where_a_recipe_names_it_as_a_model(tmp_path: Path) -> None:
    """Its key is that of its manifest, so nothing else would see that its weights are others by now."""
    sft = write_stage(tmp_path / "sft-1", "model/model.safetensors", "weights")
    (sft / "model.json").write_text(json.dumps({"model": "model"}))
    dpo = write_stage(tmp_path / "dpo-1", "adapter/adapter_model.safetensors", "weights")
    (dpo / "model.json").write_text(json.dumps({"base": "../sft-1/model", "adapters": ["adapter"]}))
    for folder in (sft, dpo):
        finish(folder)
    InputVerifier({}).verify_folder(dpo)
    flip(sft / "model" / "model.safetensors")
    with pytest.raises(StageError, match=r"sft-1: model/model.safetensors is not what was written.*make it again"):
        InputVerifier({}).verify_folder(dpo)

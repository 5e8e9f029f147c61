"""Scaled rotary positions: which kinds there are, what is refused of them, and YaRN that a recipe switches on."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.models.extended_folder import make_extended_folder
from qwen_align.align.models.length_limit import read_length_limit
from qwen_align.align.models.model_description import name_hub_model, parse_hub_model
from qwen_align.align.models.rotary_scaling import KINDS, check_rotary_scaling, extend_by_yarn
from qwen_align.align.models.weight_check import check_weights
from qwen_align.align.settings.yarn import Yarn

CONFIG = {"model_type": "qwen3", "hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}
CONFIG |= {"max_position_embeddings": 64, "rope_theta": 10_000.0}
SOUND: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "attention_factor": 1.2, "beta_fast": 32, "beta_slow": 1.0, "truncate": True},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16},
    "llama3": {"factor": 4, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 16},
    "proportional": {"partial_rotary_factor": 0.5},
}


def scale(kind: str, parameters: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {**CONFIG, "rope_scaling": {"rope_type": kind, **parameters}, **rest}


def test_the_kinds_are_those_of_transformers() -> None:
    assert set(KINDS) == {"default", *ROPE_INIT_FUNCTIONS} == set(SOUND)


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_scaling_is_one_that_transformers_builds(kind: str) -> None:
    notes = list(check_rotary_scaling(scale(kind, SOUND[kind])))
    assert bool(notes) == (kind in ("dynamic", "longrope"))
    built = Qwen3Config(**scale(kind, SOUND[kind]))
    if kind != "default":
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](built, seq_len=4)
        assert frequencies.isfinite().all()
        assert factor > 0


@pytest.mark.parametrize("kind", [kind for kind in SOUND if KINDS[kind].needed])
def test_what_a_kind_needs_is_what_transformers_fails_without(kind: str) -> None:
    for name in KINDS[kind].needed:
        lacking = {key: value for key, value in SOUND[kind].items() if key != name}
        with pytest.raises(ValueError, match=f"type '{kind}' need {name}"):
            list(check_rotary_scaling(scale(kind, lacking)))
        with pytest.raises((KeyError, TypeError)):
            Qwen3Config(**scale(kind, lacking))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (scale("ntk_by_parts", {"factor": 4.0}), "type 'ntk_by_parts' are not known; known are default, linear"),
        ({**CONFIG, "rope_parameters": {"type": "yarm", "factor": 4.0}}, "rope_parameters: .* 'yarm' are not known"),
        (scale("yarn", {"factor": "4"}), "factor is '4', where a number is wanted"),
        (scale("yarn", {"factor": 4.0, "beta_fast": [32]}), r"beta_fast is \[32\]"),
        (scale("linear", {"factor": 0.25}), "factor is 0.25"),
        (scale("llama3", SOUND["llama3"] | {"original_max_position_embeddings": 64}), "less than the 64 positions"),
        (scale("longrope", SOUND["longrope"] | {"long_factor": [1.0]}), "long_factor has to be a list of 4 numbers"),
        ({**CONFIG, "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "one scaling for all of its layers"),
        ({**CONFIG, "rope_scaling": "yarn"}, "one scaling for all of its layers"),
    ],
)
def test_a_scaling_that_is_not_understood_is_refused_by_name(config: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        list(check_rotary_scaling(config))


def test_what_nothing_reads_and_what_varies_is_said() -> None:
    (misspelt,) = check_rotary_scaling(scale("yarn", {"factor": 4.0, "original_max_positions": 32}))
    assert misspelt == "nothing reads original_max_positions of rotary positions of type 'yarn'"
    (varying,) = check_rotary_scaling({**scale("dynamic", {"factor": 4.0}), "model_type": "mistral"})
    assert "'dynamic', whose frequencies beyond 64 tokens" in varying
    assert not list(check_rotary_scaling(scale("their_own", {}, model_type="hunyuan_v1_dense")))


def test_check_refuses_a_model_folder_by_the_type_of_its_rotary_positions(tiny_model: Path, tmp_path: Path) -> None:
    """At the door, where transformers fails with a KeyError while the model is loaded."""
    folder = make_extended_folder(tiny_model, Yarn(factor=4.0), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_type": "mine"}}))
    with pytest.raises(RecipeError, match=r"config\.json: rope_parameters: rotary positions of type 'mine'"):
        check_weights(folder)


# --- YaRN that is switched on


def test_yarn_gives_the_frequencies_of_the_paper(tiny_model: Path, tmp_path: Path) -> None:
    """Computed here from arXiv:2309.00071, equations 17 to 23: by rotations within the original length."""
    folder = make_extended_folder(tiny_model, Yarn(factor=4.0, original_positions=128), tmp_path)
    model = loading.load_base_model(folder)
    base, size = 10_000.0, model.config.head_dim
    expected = []
    bounds = [size * math.log(128 / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (32, 1)]
    low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), size - 1)
    for i in range(size // 2):
        frequency = base ** (-2 * i / size)
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        expected.append((1 - ramp) * frequency + ramp * frequency / 4)
    rotary = model.model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq, torch.tensor(expected))
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)
    assert not torch.allclose(rotary.inv_freq, loading.load_base_model(tiny_model).model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    "said", [{"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}]
)
def test_both_forms_of_a_config_are_extended(said: dict[str, Any]) -> None:
    plain = {name: value for name, value in CONFIG.items() if name != "rope_theta"} | said
    built = AutoConfig.for_model(**extend_by_yarn(plain, Yarn(factor=2.0)))
    found = built.rope_parameters
    assert found == {
        "rope_type": "yarn",
        "rope_theta": 5e5,
        "factor": 2.0,
        "original_max_position_embeddings": 64,
    } | ({k: v for k, v in found.items() if k == "type"})
    assert built.max_position_embeddings == 64


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (scale("yarn", {"factor": 4.0}), "scales rotary positions already, by 'yarn' with factor 4.0"),
        ({"model_type": "gpt2", "n_positions": 1024}, "a gpt2 model has none"),
        ({**CONFIG, "max_position_embeddings": 32}, "original_positions: 48, and the model has 32 positions"),
    ],
)
def test_yarn_is_refused_where_it_has_nothing_to_scale(config: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        extend_by_yarn(config, Yarn(factor=4.0, original_positions=48))


def test_an_extended_folder_has_the_files_of_the_model_as_they_are_now(tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in tiny_model.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    before = (source / "config.json").read_bytes()
    folder = make_extended_folder(source, Yarn(factor=4.0), tmp_path / "store")
    assert folder.parent == tmp_path / "store"
    assert read_length_limit(folder) == 4 * (read_length_limit(source) or 0)
    assert (source / "config.json").read_bytes() == before
    (source / "generation_config.json").unlink()
    (source / "new.txt").write_text("x")
    written = (folder / "config.json").stat().st_mtime_ns
    assert make_extended_folder(source, Yarn(factor=4.0), tmp_path / "store") == folder
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()}
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert make_extended_folder(source, Yarn(factor=2.0), tmp_path / "store") != folder


def test_a_hub_model_carries_its_yarn_in_its_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yarn = Yarn(factor=4.0, original_positions=64)
    name = name_hub_model("Qwen/Qwen3-8B", "0" * 40, ignores_adapter=True, yarn=yarn)
    assert parse_hub_model(name) == ("Qwen/Qwen3-8B", "0" * 40, True, yarn)
    assert parse_hub_model(name_hub_model("a/b", "main", ignores_adapter=False)) == ("a/b", "main", False, None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tiny_model))
    assert loading.find_length_limit(Path(name)) == 256
    assert loading.load_model(Path(name)).config.rope_parameters["rope_type"] == "yarn"

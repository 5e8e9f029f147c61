"""Reading recipes: what is refused, in which words, and what matrix and overrides make of a file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.recipe import RepeatBlock
from qwen_align.align.settings.recipe_file import Variant, load_variants

BASE = "{path: models/base}"
HEAD = f"""
name: trial
models:
  base: {BASE}
anchors:
  shared: &shared {{temperature: 1.0, max_tokens: 8}}
  protocol: &protocol {{kind: evaluate, from_data: [data], completions_per_prompt: 1, sampling: *shared}}
stages:
  - {{name: data, kind: build_data, builder: {{kind: arithmetic, rows: problem, n: 4, steps: [1]}}}}
"""
DPO = "{name: dpo, kind: dpo, from_model: policy, from_data: [pairs], max_tokens: 8, batch: 1, epochs: 1, \
beta: 0.1, learning_rate: 1e-4}"
PAIRS = "{name: pairs, kind: build_data, builder: {kind: pairs, from_data: rollouts}}"
ROLLOUTS = "{name: rollouts, kind: rollout, from_model: policy, from_data: data, completions_per_prompt: 2, \
sampling: *shared, rewards: [{kind: math_answer}]}"
SFT = "  - {name: sft, kind: sft, from_model: base, from_data: [data], max_tokens: 8, batch: 1, epochs: 1, \
learning_rate: 1e-4}\n"
REPEAT = f"""
    repeat:
      times: 2
      carry: {{policy: dpo}}
      stages:
        - {ROLLOUTS}
        - {PAIRS}
        - {DPO}
"""
EVALUATE = "  - {<<: *protocol, name: before, from_model: base}\n  - {<<: *protocol, name: after, from_model: sft}\n"


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Variant]]:
    def read_text(text: str, *overrides: str) -> list[Variant]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_variants(path, overrides)

    return read_text


def refusal(read: Callable[..., list[Variant]], text: str, *overrides: str) -> str:
    """What the recipe is refused with, its folder taken off."""
    with pytest.raises(RecipeError) as refused:
        read(text, *overrides)
    assert refused.value.exit_code == 2
    return re.sub(r"\S*/recipe\.yaml", "recipe.yaml", str(refused.value))


def stage(variant: Variant, name: str) -> Any:
    return next(item for item in variant.recipe.stages if getattr(item, "name", None) == name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 1", "epochs: two", "epochs: must be a number; found 'two'"),
        ("batch: 1", "batch: 1.5", "batch: must be a whole number; found 1.5"),
        ("batch: 1", "batch: '8'", "batch: must be a whole number; found '8'; write it without quotes"),
        ("batch: 1", "batch: 0", "batch: must be at least 1; found 0"),
        ("epochs: 1", "epochs: .inf", "epochs: must be a finite number; found inf"),
        ("batch: 1", "batch: 1, lora: {rank: 1, alpha: .inf}", "lora.alpha: must be a finite number; found inf"),
        ("batch: 1", "batch: 1, weight_decay: .nan", "weight_decay: must be a finite number; found nan"),
        ("batch: 1", "batch: true", "batch: must be a whole number; found true"),
        ("batch: 1", "bacth: 1", "'bacth' is no setting here. Did you mean 'batch'?"),
        (", batch: 1", "", "batch: is missing"),
        (
            "batch: 1",
            "batch: 1, schedule: cosin",
            "schedule: must be 'constant', 'linear' or 'cosine'; found 'co",
        ),
        ("batch: 1", "batch: 1, lora: {alpa: 1}", "lora: 'alpa' is no setting here. Did you mean 'alpha'?"),
        ("batch: 1", "batch: 1, lora: {rank: 8}", "lora.alpha: is missing"),
        ("batch: 1", "batch: 1, betas: [0.9, 1.5]", "betas[1]: must be below 1; found 1.5"),
        ("batch: 1", "batch: 1, betas: [0.9, x]", "betas[1]: must be a number; found 'x'"),
        ("[data]", "data", "from_data: must be a list; found 'data'; write [data]"),
        ("[data]", "[]", "from_data: must be a list of at least 1; found []"),
    ],
)
def test_a_wrong_setting_is_named_with_its_stage(
    read: Callable[..., list[Variant]], old: str, new: str, message: str
) -> None:
    assert refusal(read, HEAD + SFT.replace(old, new)).startswith(f"recipe.yaml: stage 'sft': {message}")


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "sigmoid_norm", "robust"])
def test_a_label_smoothing_that_the_loss_does_not_read_is_refused(
    read: Callable[..., list[Variant]], loss: str
) -> None:
    """TRL 1.16 reads it in `robust` alone: with the others pairs would be trusted that the user does not trust."""
    dpo = SFT.replace("kind: sft", "kind: dpo, beta: 0.1, label_smoothing: 0.1, loss: " + loss)
    if loss == "robust":
        assert stage(read(HEAD + dpo)[0], "sft").label_smoothing == 0.1
    else:
        said = refusal(read, HEAD + dpo)
        assert said.startswith(f"recipe.yaml: stage 'sft': label_smoothing: loss '{loss}' does not read it; set loss: ")


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("{kind: sfd, name: x}", "stage 'x': kind 'sfd' is unknown. Did you mean 'sft'?"),
        ("{name: x}", "stage 'x': 'kind' is missing"),
        ("{kind: [sft], name: x}", "stage 'x': kind '['sft']' is unknown. Did you mean 'sft'?"),
        (
            "{kind: sft, name: 'a b'}",
            "stage 'a b': name: must be letters, digits, _, ., = and -",
        ),
        ("{kind: sft}", "stages[1]: name: is missing"),
        ("sft", "stages[1]: must be a group of settings with its kind, {kind: ...}; found 'sft'"),
        ("{name: d, kind: build_data, builder: {kind: arithmetic}}", "stage 'd': builder.rows: is missing"),
        (
            "{name: d, kind: build_data, builder: {kind: arithmetics}}",
            "builder: kind 'arithmetics' is unknown. Did you",
        ),
        (
            "{name: d, kind: build_data, builder: {kind: arithmetic, rows: text, n: 1, steps: [9]}}",
            "stage 'd': builder.steps[0]: must be at most 8; found 9",
        ),
        (
            "{name: d, kind: build_data, builder: {kind: local_file, path: x.xlsx, rows: text}}",
            ".json.gz, .csv, .tsv, .csv.gz, .tsv.gz, .parquet; convert the file",
        ),
        (
            ROLLOUTS.replace("math_answer", "maths_answer"),
            "stage 'rollouts': rewards[0]: kind 'maths_answer' is unknown",
        ),
        (
            "{<<: *protocol, name: e, from_model: base, thinking_switches: [{method: flag}]}",
            "stage 'e': thinking_switches[0]: method 'flag' with mode None: 'default' and 'plain' ask for nothing",
        ),
        (
            "{<<: *protocol, name: e, from_model: base, thinking_switches: [{method: plain}]}",
            "stage 'e': thinking_switches[0]: 'prompt' belongs to method 'plain', and that needs one",
        ),
        (
            "{<<: *protocol, name: e, from_model: base, thinking_switches: [{method: plain, prompt: 'Q: {problem}'}]}",
            "stage 'e': thinking_switches[0]: prompt 'Q: {problem}' has to hold {question} once",
        ),
        (REPEAT.replace("beta: 0.1", "betta: 0.1"), "stage 'dpo': 'betta' is no setting here. Did you mean 'beta'?"),
        (REPEAT.replace("beta: 0.1", "beta: no"), "stage 'dpo': beta: must be a number; found false"),
        (REPEAT.replace("name: dpo, ", ""), "stages[1]: repeat.stages[2]: name: is missing"),
        (REPEAT.replace("times: 2", "times: 0"), "stages[1]: repeat.times: must be at least 1"),
        (REPEAT.replace("times: 2", "time: 2"), "stages[1]: repeat: 'time' is no setting here. Did you mean 'times'?"),
    ],
)
def test_a_wrong_stage_is_named(read: Callable[..., list[Variant]], added: str, message: str) -> None:
    said = refusal(read, f"{HEAD}  - {added}")
    assert said.startswith("recipe.yaml: stage")
    assert message in said
    assert len(said.splitlines()) <= 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml: a recipe is a mapping with name and stages; found NoneType"),
        ("- a", "recipe.yaml: a recipe is a mapping with name and stages; found list"),
        ("name: [", "recipe.yaml:1: not a recipe in YAML: while parsing a flow node"),
        ("name: a\nmodels:\n\tbase: {}", "that is a tab: indent with spaces"),
        ("name: a\nstages:\n  - name: q\n   kind: sft", "this line is indented otherwise than those it belongs to"),
        ("name: a\nname: b", "recipe.yaml:2: not a recipe in YAML: 'name' is given twice"),
        (HEAD + "  - {name: x, kind: sft, name: y}", "'name' is given twice"),
        ("name: &a [*a]", "recipe.yaml: an alias (*name) refers to a value that contains it"),
        ("name: *nowhere", "found undefined alias 'nowhere'"),
        ("name: !!python/object:os.system x", "could not determine a constructor for the tag"),
        ("name: trial", "recipe.yaml: stages: is missing"),
        ("name: trial\nstages: []", "recipe.yaml: stages: must be a list of at least 1; found []"),
        ("name: trial\nstages: {a: 1}", "recipe.yaml: stages: must be a list; found {'a': 1}"),
        (
            HEAD.replace("name: trial", "name: a/b"),
            "recipe.yaml: name: must be letters, digits, _ and -",
        ),
        (HEAD.replace("name: trial", "name: 3"), "recipe.yaml: name: must be a text; found 3; write it in quotes, '3'"),
        (HEAD + "sead: 1", "recipe.yaml: 'sead' is no setting here. Did you mean 'seed'?"),
        (HEAD + "runtime: {micro_batches: 1}", "runtime: 'micro_batches' is no setting here. Did you mean 'micro_bat"),
        (HEAD.replace(BASE, "{}"), "models.base: give exactly one of shipped, path, hub; found none"),
        (HEAD.replace(BASE, "{path: a, shipped: tiny_base}"), "exactly one of shipped, path, hub; found shipped, path"),
        (HEAD.replace(BASE, "{hub: Qwen/Qwen3-0.6B}"), "models.base: revision is missing: the commit of"),
        (
            HEAD.replace(BASE, "{hub: a/b, revision: 0a1b2c3}"),
            "models.base.revision: '0a1b2c3' is a part of",
        ),
        (HEAD + "matrix: {seed: []}", "matrix.seed: must be a list of at least 1; found []"),
        (HEAD + "matrix: {seed: [0, 1, 0]}", "matrix: seed: two values are called '0'; each may stand there once"),
        (HEAD + "matrix: {stages.dat.seed: [0]}", "matrix: 'stages.dat': no stage is called 'dat'. Did you mean 'data"),
    ],
)
def test_a_wrong_file_is_refused(read: Callable[..., list[Variant]], text: str, message: str) -> None:
    assert message in refusal(read, text)


def test_a_recipe_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: no such recipe; `qwen-align recipes` lists"):
        load_variants(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"cannot be read: .*directory"):
        load_variants(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"cannot be read: .*utf-8"):
        load_variants(tmp_path / "latin.yaml")


def test_the_first_five_errors_are_told(read: Callable[..., list[Variant]]) -> None:
    said = refusal(read, HEAD + "".join(f"  - {{kind: sft, name: s{number}}}\n" for number in range(3)))
    lines = said.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("recipe.yaml: stage 's0': ") for line in lines[:5])
    assert lines[5] == "... and 13 more"


def test_numbers_are_those_of_yaml_1_2(read: Callable[..., list[Variant]]) -> None:
    for written in ("1e-4", "1E-4", "1.0e-4", ".1e-3", "0.0001", "1.e-4"):
        recipe = read(HEAD + SFT.replace("learning_rate: 1e-4", f"learning_rate: {written}"))[0]
        assert stage(recipe, "sft").learning_rate == 1e-4


def test_whole_numbers_are_numbers(read: Callable[..., list[Variant]]) -> None:
    recipe = read(HEAD + SFT.replace("epochs: 1", "epochs: 2"))[0]
    assert stage(recipe, "sft").epochs == 2.0
    assert type(stage(recipe, "sft").epochs) is float


@pytest.mark.parametrize(
    ("override", "name", "field", "value"),
    [
        ("stages.sft.learning_rate=1e-6", "sft", "learning_rate", 1e-6),
        ("stages.sft.runtime.micro_batch=2", "sft", "runtime.micro_batch", 2),
        ("stages.sft.lora={rank: 8, alpha: 16}", "sft", "lora.rank", 8),
        ("stages.sft.from_data=[other]", "sft", "from_data", ["other"]),
        ("stages.data.builder.split=dev", "data", "builder.split", "dev"),
        ("stages.data.builder.steps=[1, 2]", "data", "builder.steps", [1, 2]),
        ("stages.after.thinking_switches=[{method: kwarg, mode: think}]", "after", "thinking_switches", None),
        ("stages.after.sampling.max_tokens=3", "after", "sampling.max_tokens", 3),
    ],
)
def test_an_override_sets_one_setting(
    read: Callable[..., list[Variant]], override: str, name: str, field: str, value: object
) -> None:
    text = HEAD + SFT + EVALUATE
    before, after = read(text)[0], read(text, override)[0]
    found = stage(after, name)
    for part in field.split("."):
        found = getattr(found, part)
    assert value is None or found == value
    changed = [one.name for one, other in zip(before.recipe.stages, after.recipe.stages, strict=True) if one != other]
    assert changed == [name], "an anchor is a copy: only the stage that was named changes"


def test_overrides_reach_into_repeats_lists_models_and_the_top(read: Callable[..., list[Variant]]) -> None:
    text = f"{HEAD}  -{REPEAT}  - {{<<: *protocol, name: e, from_model: base, thinking_switches: [{{}}]}}\n"
    switched = ["stages.e.thinking_switches.0.mode=think", "stages.e.thinking_switches.0.method=kwarg"]
    variant = read(text, "stages.dpo.beta=0.5", "seed=7", "runtime.threads=1", "models.base.path=/m", *switched)[0]
    block: Any = variant.recipe.stages[1]
    assert [one.beta for one in block.repeat.stages if one.kind == "dpo"] == [0.5]
    assert (variant.recipe.seed, variant.recipe.runtime.threads) == (7, 1)
    assert variant.recipe.models["base"].path == "/m"
    assert stage(variant, "e").thinking_switches[0].mode == "think"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: write it as setting=value, as in stages.sft.learning_rate=1e-5"),
        ("stages.stf.batch=1", "--set stages.stf.batch=1: 'stages.stf': no stage is called 'stf'. Did you mean 'sft'?"),
        ("stages.sft.from_data.0=x", "--set stages.sft.from_data.0=x: 'stages.sft.from_data.0' names no setting"),
        ("sft.batch=2", "--set sft.batch=2: 'sft.batch' is no setting of the recipe; write stages.sft.batch"),
        ("stf.batch=2", "'stf.batch' is no setting of the recipe; write stages.sft.batch"),
        ("base.path=x", "'base.path' is no setting of the recipe; write models.base.path"),
        ("batch=2", "--set batch=2: 'batch' is no setting of the recipe; write stages.sft.batch"),
        ("stages.sft.lr=1", "stage 'sft': 'lr' is called 'learning_rate' here"),
        ("sed=1", "recipe.yaml: 'sed' is no setting here. Did you mean 'seed'?"),
        ("stages.sft=1", "--set stages.sft=1: 'stages.sft' names no setting"),
        ("stages.sft.batch.x=1", "--set stages.sft.batch.x=1: 'stages.sft.batch.x' names no setting"),
        ("name.x.y=1", "--set name.x.y=1: 'name.x' is no group of settings"),
        ("stages.sft.batch=[", "--set stages.sft.batch=[:1: not a recipe in YAML: while parsing a flow node"),
        ("stages.sft.bacth=1", "recipe.yaml: stage 'sft': 'bacth' is no setting here. Did you mean 'batch'?"),
        ("stages.sft.batch=many", "stage 'sft': batch: must be a whole number; found 'many'"),
        ("stages.sft.batch=", "stage 'sft': batch: must be a whole number; found null"),
    ],
)
def test_a_wrong_override_is_refused(read: Callable[..., list[Variant]], override: str, message: str) -> None:
    assert message in refusal(read, HEAD + SFT, override)


def test_a_matrix_makes_a_variant_for_each_choice(read: Callable[..., list[Variant]]) -> None:
    matrix = "matrix: {seed: [0, 1], stages.sft.learning_rate: [1e-4, 3e-4, 1e-3]}"
    variants = read(HEAD + SFT + matrix)
    found = [(one.axes, one.recipe.seed, stage(one, "sft").learning_rate) for one in variants]
    assert found == [
        ({"seed": str(seed), "learning_rate": str(rate)}, seed, rate) for seed in (0, 1) for rate in (1e-4, 3e-4, 1e-3)
    ]


def test_a_matrix_over_models_names_them_by_number(read: Callable[..., list[Variant]]) -> None:
    variants = read(HEAD + "matrix: {base: [{path: /a}, {path: /b}]}")
    assert [(one.axes["base"], one.recipe.models["base"].path) for one in variants] == [("0", "/a"), ("1", "/b")]


def test_axes_of_the_same_last_name_are_told_apart(read: Callable[..., list[Variant]]) -> None:
    variants = read(HEAD + SFT + "matrix: {stages.sft.seed: [1], seed: [2], stages.sft.batch: [4]}")
    assert variants[0].axes == {"stages.sft.seed": "1", "seed": "2", "batch": "4"}


def test_a_matrix_can_come_from_an_override(read: Callable[..., list[Variant]]) -> None:
    assert [one.recipe.seed for one in read(HEAD, "matrix={seed: [0, 1, 2]}")] == [0, 1, 2]


def test_merged_anchors_may_be_overridden_and_nested(read: Callable[..., list[Variant]]) -> None:
    text = HEAD.replace("stages:", "  second: &second {<<: *protocol, completions_per_prompt: 2}\nstages:")
    text += "  - {<<: *second, name: e, from_model: base}\n"
    text += "  - {<<: *second, name: f, completions_per_prompt: 3, from_model: base}"
    variant = read(text)[0]
    assert (stage(variant, "e").completions_per_prompt, stage(variant, "f").completions_per_prompt) == (2, 3)


TINY = "tiny: {stages.sft.batch: 4, stages.data.builder: {kind: arithmetic, rows: trace, n: 2, steps: [2]}}\n"


def tiny(tmp_path: Path, text: str, *overrides: str) -> Variant:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_variants(path, overrides, tiny=True)[0]


def test_a_tiny_form_sets_what_it_names(tmp_path: Path, read: Callable[..., list[Variant]]) -> None:
    whole, small = read(HEAD + SFT + TINY)[0], tiny(tmp_path, HEAD + SFT + TINY)
    assert (stage(whole, "sft").batch, stage(small, "sft").batch) == (1, 4)
    assert (stage(whole, "data").builder.n, stage(small, "data").builder.n) == (4, 2)
    assert stage(small, "sft").epochs == stage(whole, "sft").epochs
    assert (whole.recipe.name, small.recipe.name) == ("trial", "trial_tiny")
    assert "tiny" not in small.recipe.model_dump()


def test_what_the_command_line_sets_goes_over_the_tiny_form(tmp_path: Path) -> None:
    small = tiny(tmp_path, HEAD + SFT + TINY, "stages.sft.batch=7", "stages.data.builder.n=9")
    assert (stage(small, "sft").batch, stage(small, "data").builder.n) == (7, 9)


def test_a_tiny_form_reaches_into_repeats_and_the_matrix(tmp_path: Path) -> None:
    text = f"{HEAD}{SFT}  -{REPEAT}tiny: {{stages.dpo.batch: 3, matrix: {{seed: [5]}}}}\nmatrix: {{seed: [1, 2]}}\n"
    text = text.replace("carry: {policy: dpo}", "carry: {}").replace("from_model: policy", "from_model: sft")
    small = tiny(tmp_path, text)
    assert small.axes == {"seed": "5"}
    (block,) = [item.repeat for item in small.recipe.stages if hasattr(item, "repeat")]
    assert [inner.batch for inner in block.stages if inner.name == "dpo"] == [3]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("", "recipe.yaml: has no tiny form: a section `tiny` would map"),
        ("tiny: {}\n", "recipe.yaml: has no tiny form"),
        (
            "tiny: {stages.stf.batch: 4}\n",
            "recipe.yaml: tiny: 'stages.stf': no stage is called 'stf'. Did you",
        ),
        ("tiny: {stages.sft.bacth: 4}\n", "recipe.yaml: stage 'sft': 'bacth' is no setting here"),
        ("tiny: {name.x: 4}\n", "recipe.yaml: tiny: 'name.x' names no setting"),
    ],
)
def test_a_wrong_tiny_form_is_refused(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        tiny(tmp_path, HEAD + SFT + section)
    assert message in re.sub(r"\S*/recipe\.yaml", "recipe.yaml", str(refused.value))


def test_a_tiny_form_leaves_a_missing_name_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="name: is missing"):
        tiny(tmp_path, HEAD.replace("name: trial\n", "") + SFT + TINY)


def write_extension(tmp_path: Path, text: str) -> Path:
    (tmp_path / "recipe.yaml").write_text(f"{HEAD}{SFT}  - {{<<: *protocol, name: after, from_model: sft}}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_recipe_that_extends_another_has_its_stages_changed_and_more(tmp_path: Path) -> None:
    more = "{name: more, kind: build_data, builder: {kind: arithmetic, rows: trace, n: 2, steps: [1]}}"
    path = write_extension(
        tmp_path,
        f"""
name: mine
extends: recipe.yaml
models: {{other: {{path: models/other}}}}
change: {{stages.sft.from_data: [data, more], seed: 3}}
stages:
  - {more}
""",
    )
    (whole,) = load_variants(path, ["stages.sft.batch=4"])
    recipe = whole.recipe
    assert (recipe.name, recipe.seed, sorted(recipe.models)) == ("mine", 3, ["base", "other"])
    stages: Any = {stage.name: stage for stage in recipe.stages if not isinstance(stage, RepeatBlock)}
    assert list(stages) == ["data", "sft", "after", "more"]
    assert stages["sft"].from_data == ["data", "more"]
    assert (stages["sft"].batch, stages["sft"].max_tokens) == (4, 8)
    assert stages["after"].completions_per_prompt == 1  # the anchors are the extended recipe's own


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "extends: recipe.yaml",
            "mine.yaml: name: is missing; with that of recipe.yaml their runs would share a folder",
        ),
        ("name: mine\nextends: ../recipe.yaml", "must be the name of another recipe in the same folder"),
        ("name: mine\nextends: mine.yaml", "must be the name of another recipe in the same folder"),
        ("name: mine\nextends: [recipe.yaml]", "must be the name of another recipe in the same folder"),
        ("name: mine\nextends: recipes.yaml", "recipes.yaml: no such recipe"),
        ("name: mine\nextends: recipe.yaml\nchange: [1]", "mine.yaml: change: must be a mapping; found [1]"),
        (
            "name: mine\nextends: recipe.yaml\nchange: {stages.stf.batch: 1}",
            "no stage is called 'stf'. Did you mean 'sft'",
        ),
        ("name: mine\nextends: recipe.yaml\nmodels: 1", "mine.yaml: models: must be a mapping; found 1"),
        ("name: mine\nchange: {seed: 1}", "change: changes the recipe that this one extends; there is no `extends`"),
    ],
)
def test_an_extension_that_cannot_be_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_variants(write_extension(tmp_path, text))
    assert says in str(refused.value)

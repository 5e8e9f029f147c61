"""Keys change with what a result depends on, and with nothing else."""

import copy
import importlib.metadata
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import pytest
import yaml
from pydantic import BaseModel

from qwen_align.align.commands import shipped_recipes
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.references import to_plain_value
from qwen_align.align.settings import renamed
from qwen_align.align.settings.base import ALWAYS_IN_KEY, Strict
from qwen_align.align.settings.online_rl import Watch
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.recipe_file import RecipeLoader
from qwen_align.align.stages.registry import CODE_VERSIONS, STAGE_KINDS
from qwen_align.align.store import store
from qwen_align.align.store.keys import is_always_in_key, list_key_fields

GOLDEN = Path(__file__).parents[2] / "golden"

SFT = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["rows"],
    "max_tokens": 64,
    "batch": 1,
    "epochs": 1,
    "learning_rate": 1e-4,
}
ROWS = {"name": "rows", "kind": "build_data", "builder": {"kind": "local_file", "path": "rows.jsonl", "rows": "text"}}


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[dict[str, Any]], dict[str, str]]:
    """The key of every stage of a recipe, by name."""

    def of(raw: dict[str, Any]) -> dict[str, str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return {one.stage.name: one.key for one in make_plan(path, tmp_path).stages}

    return of


@pytest.fixture
def quickstart(tiny_model: Path) -> dict[str, Any]:
    """The shipped quickstart on the tiny model, its anchors filled in."""
    raw: dict[str, Any] = json.loads(json.dumps(yaml.load(shipped_recipes.read_recipe("quickstart"), RecipeLoader)))
    raw["models"]["base"] = {"path": str(tiny_model)}
    del raw["anchors"]
    return raw


@pytest.fixture
def small(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    return {"name": "trial", "models": {"base": {"path": str(tiny_model)}}, "stages": [ROWS, SFT]}


def edited(raw: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """A copy with one setting changed; `place` opens with the stage's name, or with a dot for the recipe itself."""
    raw = copy.deepcopy(raw)
    owner, *path = place.split(".")
    here = raw if not owner else next(stage for stage in raw["stages"] if stage["name"] == owner)
    for part in path[:-1]:
        here = here.setdefault(part, {})
    here[path[-1]] = value
    return raw


def reads(settings: Any) -> Iterator[str]:
    """The names in every `from_...` of a stage, read from the raw YAML."""
    if isinstance(settings, dict):
        for field, value in settings.items():
            if field.startswith("from_"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from reads(value)


def dependents(raw: dict[str, Any], changed: set[str]) -> set[str]:
    found = set(changed)
    while more := {stage["name"] for stage in raw["stages"] if found & set(reads(stage))} - found:
        found |= more
    return found


WORDS = {"train": "dev", "test": "dev", "linear": "cosine", "constant": "linear", "dapo": "grpo", "trace": "direct"}


class Edit(NamedTuple):
    """A value that one place of a stage's raw settings could have instead."""

    place: Any
    field: Any
    value: object


def edits(settings: Any, random_: random.Random) -> Iterator[Edit]:
    """One for each value; references, names and kinds are left alone."""
    for field, value in list(settings.items()) if isinstance(settings, dict) else list(enumerate(settings)):
        if isinstance(field, str) and (field in ("name", "kind", "mode", "method") or field.startswith("from_")):
            continue
        if isinstance(value, dict | list):
            yield from edits(value, random_)
        elif isinstance(value, float):
            yield Edit(settings, field, value * random_.choice([0.5, 0.8]))
        elif isinstance(value, int):
            yield Edit(settings, field, value + random_.choice([1, 2]))
        elif value in WORDS:
            yield Edit(settings, field, WORDS[value])


def rename_stage(raw: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    def walk(value: Any, is_reference: bool = False) -> Any:
        if isinstance(value, dict):
            return {name: walk(item, name == "name" or name.startswith("from_")) for name, item in value.items()}
        if isinstance(value, list):
            return [walk(item, is_reference) for item in value]
        return new if is_reference and value == old else value

    return {**raw, "stages": walk(raw["stages"])}


def test_random_edits_change_the_keys_of_exactly_the_dependent_stages(
    quickstart: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]]
) -> None:
    random_ = random.Random(0)
    before = keys(quickstart)
    tried = 0
    while tried < 30:
        raw = copy.deepcopy(quickstart)
        stage = random_.choice(raw["stages"])
        seed = Edit(stage, "seed", stage.get("seed", 0) + 7)
        place, field, value = random_.choice([*edits(stage, random_), seed])
        place[field] = value
        old = random_.choice(raw["stages"])["name"]
        noisy = rename_stage(raw, old, "another_name")
        random_.shuffle(noisy["stages"])
        # micro_batch is left alone: with an SFT term, as here, dpo depends on it (see below)
        noisy["runtime"] = {
            **raw["runtime"],
            "generation_batch": random_.randint(1, 99),
            "threads": random_.randint(1, 4),
        }
        try:
            after = keys(noisy)
        except RecipeError:  # a value that this setting cannot have, such as a share of 0.0 + 1
            continue
        tried += 1
        changed = {name for name in before if before[name] != after["another_name" if name == old else name]}
        assert changed == dependents(raw, {stage["name"]}), f"stage {stage['name']}: {field}: {value}"


def test_the_recipes_seed_is_that_of_stages_without_their_own(
    quickstart: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]]
) -> None:
    before, after = keys(quickstart), keys({**quickstart, "seed": 1})
    without = {stage["name"] for stage in quickstart["stages"] if "seed" not in stage}
    assert {name for name in before if before[name] != after[name]} == dependents(quickstart, without)
    assert before["test"] == after["test"]


def test_seeds_of_a_matrix_share_the_stages_with_a_fixed_seed(
    quickstart: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]]
) -> None:
    of = keys({**quickstart, "matrix": {"seed": [0, 1]}})
    alone = keys(quickstart)
    for stage in quickstart["stages"]:
        name = stage["name"]
        assert of[f"{name}.seed=0"] == alone[name], "a cell is the recipe with its values set"
        is_shared = of[f"{name}.seed=0"] == of[f"{name}.seed=1"]
        assert is_shared == (name in ("test", "one_step", "grpo_prompts", "fusion_prompts"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("sft.runtime", {"micro_batch": 3, "processes": 2}),
        (".runtime", {"device": "cpu", "checkpoint_every": 7}),
        (".report", {"title": "other"}),
        (".tracking", {"to": ["wandb"], "project": "other"}),
        (".name", "other"),
        (".seed", 0),
        ("sft.weight_decay", 0.0),  # its default, written out
        ("sft.epochs", 1.0),
        ("sft.on_empty", "fail"),
    ],
)
def test_what_leaves_all_keys(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]], place: str, value: object
) -> None:
    assert keys(edited(small, place, value)) == keys(small)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("sft.seed", 1),
        ("sft.learning_rate", 2e-4),
        ("sft.precision", "bf16"),
        ("sft.on_empty", "pass_through"),
        ("sft.lora", {"rank": 4, "alpha": 8}),
    ],
)
def test_what_changes_the_key_of_its_stage_alone(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]], place: str, value: object
) -> None:
    before, after = keys(small), keys(edited(small, place, value))
    assert before["sft"] != after["sft"]
    assert before["rows"] == after["rows"]


def test_the_micro_batch_is_in_the_key_where_the_loss_depends_on_it(
    quickstart: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]]
) -> None:
    """TRL's entropy in GRPO is a mean over a forward pass: 16 rows are another loss. Of our own losses none is."""

    def with_micro_batch(recipe: dict[str, Any], size: int) -> dict[str, str]:
        return keys({**recipe, "runtime": {"micro_batch": size}})

    assert with_micro_batch(quickstart, 16) == keys(quickstart)
    by_trl = copy.deepcopy(quickstart)
    grpo = next(stage for stage in by_trl["stages"] if stage.get("kind") == "grpo")
    for setting in ("kl", "prompt_sampler"):
        grpo.pop(setting, None)
    grpo |= {"trainer": "trl", "entropy": {"coefficient": 0.01}}
    before, after = with_micro_batch(by_trl, 64), with_micro_batch(by_trl, 16)
    assert {name for name in before if before[name] != after[name]} == dependents(by_trl, {grpo["name"]})


def test_a_new_code_version_changes_the_keys_of_its_kind_and_what_follows(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(small)
    monkeypatch.setitem(store.CODE_VERSIONS, "sft", 1000)
    assert keys(small)["rows"] == before["rows"]
    assert keys(small)["sft"] != before["sft"]
    monkeypatch.undo()
    monkeypatch.setitem(store.CODE_VERSIONS, "build_data", 1000)
    assert all(keys(small)[name] != before[name] for name in before)


def test_an_outside_file_counts_by_what_it_holds(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]], tmp_path: Path
) -> None:
    before = keys(small)
    os.utime(tmp_path / "rows.jsonl", (1, 1))
    assert keys(small) == before, "its times do not count"
    shutil.move(tmp_path / "rows.jsonl", tmp_path / "moved.jsonl")
    assert keys(edited(small, "rows.builder.path", "moved.jsonl")) == before, "its name does not count"
    (tmp_path / "moved.jsonl").write_text('{"text": "two"}\n')
    after = keys(edited(small, "rows.builder.path", "moved.jsonl"))
    assert all(after[name] != before[name] for name in before)


def test_the_deepspeed_file_counts_by_what_it_holds_where_a_stage_trains_with_it(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]], tmp_path: Path
) -> None:
    """It may say another optimiser: SGD at a rate of 10."""
    rollout = {
        "name": "draws",
        "kind": "rollout",
        "from_model": "base",
        "from_data": "rows",
        "completions_per_prompt": 1,
        "sampling": {"max_tokens": 4},
        "rewards": [{"kind": "random"}],
    }
    raw = {**small, "stages": [*small["stages"], rollout]}
    without = keys(raw)
    raw["runtime"] = {"deepspeed": "zero.json"}
    with pytest.raises(RecipeError, match=r"stage 'sft': runtime\.deepspeed: .*zero\.json: no such file"):
        keys(raw)
    found = []
    for optimizer in ("AdamW", "SGD"):
        (tmp_path / "zero.json").write_text(json.dumps({"optimizer": {"type": optimizer, "params": {"lr": 10}}}))
        found.append(keys(raw))
    for made in found:
        assert {name for name in made if made[name] != without[name]} == {"sft"}
    assert found[0]["sft"] != found[1]["sft"]


def test_a_reward_file_counts_with_what_it_imports(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]], tmp_path: Path
) -> None:
    judge = {"name": "draws", "kind": "rollout", "from_model": "base", "from_data": "rows", "completions_per_prompt": 1}
    judge |= {"sampling": {"max_tokens": 4}, "rewards": [{"kind": "python", "file": "reward.py"}]}
    raw = {**small, "stages": [*small["stages"], judge]}
    files = {
        "reward.py": "import json\nimport scoring\nfrom parts.marks import mark\n\n\ndef judge(c, g):\n    return 1\n",
        "scoring.py": "def weigh():\n    from importlib import import_module\n    return import_module('late')\n",
        "late.py": "WEIGHT = 1\n",
        "parts/__init__.py": "",
        "parts/marks.py": "from . import table\nimport numpy\n\nmark = table\n",
        "parts/table.py": "MARKS = {}\n",
        "unread.py": "A = 1\n",
    }
    (tmp_path / "parts").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = keys(raw)
    for name, text in files.items():
        (tmp_path / name).write_text(text + "# changed\n")
        changed = {stage for stage, key in keys(raw).items() if key != before[stage]}
        assert changed == (set() if name == "unread.py" else {"draws"}), name
        (tmp_path / name).write_text(text)
    assert keys(raw) == before


def test_installed_packages_count_by_their_version_where_they_make_rows_or_verdicts(
    small: dict[str, Any],
    keys: Callable[[dict[str, Any]], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "reward.py").write_text("import numpy\nimport re\n\n\ndef judge(c, g):\n    return 1.0\n")
    (tmp_path / "gym.jsonl").write_text('{"prompt": "1?", "gold": "1"}\n')
    draw = {"kind": "rollout", "from_model": "base", "from_data": "tasks", "completions_per_prompt": 1}
    draw |= {"sampling": {"max_tokens": 4}}
    read = {"kind": "local_file", "path": "gym.jsonl", "rows": "problem"}
    stages = [
        {
            "name": "tasks",
            "kind": "build_data",
            "builder": {"kind": "reasoning_gym", "tasks": ["leg_counting"], "n": 1},
        },
        {"name": "read", "kind": "build_data", "builder": {**read, "reward": "reasoning_gym"}},
        {"name": "others", "kind": "build_data", "builder": read},
        {**draw, "name": "judged", "from_data": "others", "rewards": [{"kind": "reasoning_gym"}]},
        {**draw, "name": "own", "from_data": "others", "rewards": [{"kind": "python", "file": "reward.py"}]},
        {**draw, "name": "plain", "from_data": "others", "rewards": [{"kind": "math_answer"}]},
        {**draw, "name": "after", "rewards": [{"kind": "math_answer"}]},
    ]
    raw = {**small, "stages": stages}
    before, version = keys(raw), importlib.metadata.version
    for package, dependent in {
        "reasoning-gym": {"tasks", "read", "judged", "after"},
        "numpy": {"own"},
        "torch": set(),
    }.items():
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name, package=package: "99" if name == package else version(name)
        )
        assert {stage for stage, key in keys(raw).items() if key != before[stage]} == dependent, package


def test_a_model_counts_by_what_its_folder_holds(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]], tmp_path: Path, tiny_model: Path
) -> None:
    before = keys(small)
    copied = tmp_path / "copied"
    shutil.copytree(tiny_model, copied)
    (copied / ".cache").write_text("not part of the model")
    assert keys({**small, "models": {"base": {"path": "copied"}}}) == before
    (copied / "chat_template.jinja").write_text("another")
    after = keys({**small, "models": {"base": {"path": "copied"}}})
    assert after["rows"] == before["rows"]
    assert after["sft"] != before["sft"]


def test_a_hub_model_counts_by_its_commit(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]]
) -> None:
    def pinned(commit: str) -> str:
        return keys({**small, "models": {"base": {"hub": "Qwen/Qwen3-0.6B", "revision": commit * 40}}})["sft"]

    assert pinned("a") == pinned("a")
    assert pinned("a") != pinned("b")


def test_planning_writes_nothing_into_a_new_home(
    small: dict[str, Any], keys: Callable[[dict[str, Any]], dict[str, str]], tmp_path: Path
) -> None:
    keys(small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "rows.jsonl"]


# --- settings that come, go and change their names


class Inner(Strict):
    kind: Literal["inner"] = "inner"
    rate: float = 0.5


class Outer(Strict):
    needed: int
    flag: bool = False
    marked: Annotated[str, ALWAYS_IN_KEY] = "auto"
    inner: Inner = Inner()


def test_a_field_at_its_default_is_left_out_of_keys_unless_it_is_marked() -> None:
    assert list_key_fields(Outer(needed=1)) == [("needed", 1), ("marked", "auto")]
    assert list_key_fields(Outer(needed=1, flag=False, inner=Inner(rate=0.5))) == list_key_fields(Outer(needed=1))
    changed = dict(list_key_fields(Outer(needed=1, flag=True, inner=Inner(rate=0.1))))
    assert changed == {"needed": 1, "flag": True, "marked": "auto", "inner": Inner(rate=0.1)}
    assert list_key_fields(Inner(rate=0.1)) == [("kind", "inner"), ("rate", 0.1)]


def test_a_renamed_field_keeps_its_name_in_keys_and_its_old_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renamed.RENAMED_FIELDS, "Outer", {"flag": "was_flag"})
    assert ("was_flag", True) in list_key_fields(Outer(needed=1, flag=True))
    with pytest.raises(ValueError, match="'was_flag' is now called 'flag'"):
        Outer.model_validate({"needed": 1, "was_flag": True})


def test_a_renamed_value_keeps_its_name_in_keys_and_its_old_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renamed.RENAMED_VALUES, "Outer", {"marked": {"always": "each"}, "flag": {True: "yes"}})
    assert list_key_fields(Outer(needed=1, marked="always", flag=True)) == [
        ("needed", 1),
        ("flag", "yes"),
        ("marked", "each"),
    ]
    with pytest.raises(ValueError, match="marked: 'each' is now called 'always'"):
        Outer.model_validate({"needed": 1, "marked": "each"})
    with pytest.raises(ValueError, match="flag: 'yes' is now called true"):
        Outer.model_validate({"needed": 1, "flag": "yes"})


def test_renamed_values_inside_a_list_are_refused_and_keep_their_names_in_keys() -> None:
    settings = Watch(stop_on=["entropy", "update_kl"])
    assert list_key_fields(settings) == [("stop_on", ["entropy", "kl"])]
    with pytest.raises(ValueError, match="stop_on: 'kl' is now called 'update_kl'"):
        Watch.model_validate({"stop_on": ["entropy", "kl"]})


def test_every_renamed_field_is_a_field_and_its_old_name_is_free() -> None:
    classes = {settings.__name__: settings for kind in STAGE_KINDS for settings in settings_classes(kind)}
    for name, fields in renamed.RENAMED_FIELDS.items():
        if name in classes:
            assert fields.keys() <= classes[name].model_fields.keys()
            assert not set(fields.values()) & (classes[name].model_fields.keys() - fields.keys())
    assert set(renamed.RENAMED_FIELDS) | set(renamed.RENAMED_VALUES) <= {*classes, "OnlineRl", "Runtime"}


def test_the_keys_of_the_shipped_recipes_are_those_that_results_are_stored_under() -> None:
    """After a change that is meant (a recipe's own settings): `python tests/align/store/test_keys.py --record`."""
    recorded = json.loads((GOLDEN / "stage_keys.json").read_text())
    found = recipe_keys()
    assert found.keys() == recorded.keys()
    for name in recorded:
        assert found[name] == recorded[name], f"recipes/{name}.yaml: stored results of these stages would be lost"


def test_another_default_asks_for_another_code_version() -> None:
    """A default is not in the key, so changing it would find results that were made with the one before."""
    recorded = json.loads((GOLDEN / "defaults.json").read_text())
    for kind, of_kind in found_defaults().items():
        before = recorded.get(kind, {"version": 0, "defaults": {}})
        changed = {
            field: value
            for field, value in of_kind["defaults"].items()
            if before["defaults"].get(field, value) != value and before["version"] >= of_kind["version"]
        }
        assert not changed, (
            f"raise the code version of '{kind}' (its keys leave defaults out), or mark the field ALWAYS_IN_KEY; then "
            "`python tests/align/store/test_keys.py --record`"
        )
    assert found_defaults() == recorded, "fields came or went: record them with the same command"


def recipe_keys() -> dict[str, dict[str, str]]:
    """The key of every stage of every shipped recipe, as if all code versions were 1 and all models the same."""
    versions = dict(CODE_VERSIONS)
    CODE_VERSIONS.update(dict.fromkeys(versions, 1))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            shutil.copytree(Path(__file__).parents[3] / "recipes", folder, dirs_exist_ok=True)
            (folder / "stand_in").mkdir()
            for name in ("config.json", "model.safetensors"):
                (folder / "stand_in" / name).write_text("{}")
            found = {}
            for path in sorted(folder.glob("*.yaml")):
                raw = yaml.load(path.read_text(), RecipeLoader)
                if "extends" in raw:
                    raw = {**yaml.load((folder / raw["extends"]).read_text(), RecipeLoader), "name": raw["name"]}
                local = [name for name, source in raw.get("models", {}).items() if "hub" not in source]
                stand_ins = [f"models.{name}={{path: stand_in}}" for name in local]
                make_missing_files(raw, folder)
                found[path.stem] = {one.stage.name: one.key for one in make_plan(path, folder, stand_ins).stages}
            return found
    finally:
        CODE_VERSIONS.update(versions)


def make_missing_files(settings: Any, folder: Path) -> None:
    """Writes something where the recipe reads a file that is not shipped."""
    for field, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        if isinstance(value, dict | list):
            make_missing_files(value, folder)
        elif field == "path" and not (folder / value).exists():
            (folder / value).parent.mkdir(parents=True, exist_ok=True)
            (folder / value).write_text("{}")


def settings_classes(kind: str) -> list[type[BaseModel]]:
    """Every settings class that a stage of this kind may hold, its own first."""
    waiting: list[Any] = [
        one for one in get_args(get_args(AnyStage)[0]) if kind in get_args(one.model_fields["kind"].annotation)
    ]
    found: list[type[BaseModel]] = []
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one not in found:
                found.append(one)
                waiting += [field.annotation for name, field in one.model_fields.items() if name != "runtime"]
        else:
            waiting += get_args(one)
    return found


def found_defaults() -> dict[str, Any]:
    """The defaults that keys leave out, by kind of stage, with the kind's code version."""
    return {
        kind: {
            "version": CODE_VERSIONS[kind],
            "defaults": {
                f"{settings.__name__}.{name}": to_plain_value(
                    field.get_default(call_default_factory=True), ref=str, file=str, fields=list_key_fields
                )
                for settings in settings_classes(kind)
                for name, field in settings.model_fields.items()
                if not is_always_in_key(name, field) and name not in ("runtime", "seed")  # never in a key
            },
        }
        for kind in sorted(CODE_VERSIONS)
    }


def record(name: str, found: dict[str, Any], *, only_new: bool) -> None:
    """Writes a golden file; `only_new`: what is there already stays as it was recorded."""
    path = GOLDEN / f"{name}.json"
    kept = json.loads(path.read_text()) if only_new else {}
    path.write_text(json.dumps({**found, **kept}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] not in (["--record"], ["--new"]):
        sys.exit(f"usage: {sys.argv[0]} --record (everything) or --new (kinds and recipes that are not recorded yet)")
    record("stage_keys", recipe_keys(), only_new=sys.argv[1] == "--new")
    record("defaults", found_defaults(), only_new=sys.argv[1] == "--new")

"""A loss that is named for a paper has the paper's clip bounds and scale, unless a recipe sets them; `check` tells."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_align.align.commands import check
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.loss_defaults import LOSS_DEFAULTS
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.stage import StageSettings
from qwen_align.align.store.keys import list_key_fields
from tests.align.commands.test_check import GRPO, PROBLEMS

# Clip bounds, and whether advantages are over a standard deviation.
PAPERS = {
    "grpo": (0.2, 0.2, "group"),  # DeepSeekMath prints none; PPO's
    "dr_grpo": (0.2, 0.2, "none"),  # Dr. GRPO, section 3.2: without the deviation
    "dapo": (0.2, 0.28, "group"),  # section 4.1
    "gspo": (3e-4, 4e-4, "group"),  # section 5.1
    "cispo": (1.0, 4.0, "group"),  # no lower bound; the upper is ScaleRL's
}
PPO: dict[str, Any] = {**GRPO, "name": "ppo", "kind": "ppo", "critic": {"learning_rate": 1e-3}}


def grpo(**settings: Any) -> Grpo:
    return Grpo.model_validate({**GRPO, **settings})


@pytest.mark.parametrize("loss", PAPERS)
def test_a_loss_has_its_papers_values(loss: str) -> None:
    found = grpo(loss=loss).loss_settings
    assert (found.clip_low, found.clip_high, found.advantage_scale) == PAPERS[loss]
    assert not grpo(loss=loss).describe_departures()
    own = grpo(loss=loss, clip_high=0.5, advantage_scale="batch").loss_settings
    assert (own.clip_low, own.clip_high, own.advantage_scale) == (PAPERS[loss][0], 0.5, "batch")


def test_ppo_has_its_papers_clip_and_every_loss_an_entry() -> None:
    found = Ppo.model_validate(PPO).loss_settings
    assert (found.clip_low, found.clip_high) == (0.2, 0.2)
    assert set(LOSS_DEFAULTS) == {"ppo", *get_args(Grpo.model_fields["loss"].annotation)}


def test_a_bound_that_a_loss_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="clip_low: cispo bounds its weights from above only"):
        grpo(loss="cispo", clip_low=0.2)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({**GRPO, "loss": "gspo"}, None),
        ({**GRPO, "loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}, None),
        (
            {**GRPO, "loss": "gspo", "clip_low": 0.2, "clip_high": 0.28},
            "loss gspo, set otherwise than in its paper: clip_low 0.2 (arXiv:2507.18071: 0.0003); "
            "clip_high 0.28 (arXiv:2507.18071: 0.0004)",
        ),
        (
            {**GRPO, "loss": "dr_grpo", "advantage_scale": "group"},
            "loss dr_grpo, set otherwise than in its paper: advantage_scale group (arXiv:2503.20783: none)",
        ),
        (
            {**PPO, "clip_high": 0.28},
            "loss ppo, set otherwise than in its paper: clip_high 0.28 (arXiv:1707.06347: 0.2)",
        ),
    ],
)
def test_check_says_what_is_set_otherwise(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], stage: dict[str, Any], said: str | None
) -> None:
    models = {"base": {"path": str(tiny_model)}}
    lines = list(check.describe_plan(make_plan(write_recipe([PROBLEMS, stage], models=models), tmp_path)))
    found = [line.strip() for line in lines if "set otherwise" in line]
    assert found == ([] if said is None else [said])


def test_check_says_it_too_where_the_prompts_are_not_there_yet(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    hub = {"kind": "hub", "dataset": "someone/problems", "revision": "0" * 40, "format": "prompt_gold"}
    problems = {"name": "problems", "kind": "build_data", "builder": hub}
    recipe = write_recipe([problems, {**GRPO, "clip_high": 0.4}], models={"base": {"path": str(tiny_model)}})
    lines = list(check.describe_plan(make_plan(recipe, tmp_path)))
    assert any("clip_high 0.4 (arXiv:2503.14476: 0.28)" in line for line in lines)


def test_only_what_is_set_is_in_the_key() -> None:
    def list_names(settings: StageSettings) -> set[str]:
        return {name for name, _ in list_key_fields(settings)}

    assert not {"clip_low", "clip_high", "advantage_scale"} & list_names(grpo(loss="gspo"))
    assert {"clip_high"} <= list_names(grpo(loss="gspo", clip_high=0.28))

"""docs/rl.md: its settings are read, and what can be chosen is on the page."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import OnlineRl, Watchdog
from qwen_align.align.settings.ppo import Critic, Ppo
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.recipe_file import read_settings

TEXT = (Path(__file__).parents[1] / "docs" / "rl.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
SHARED_WITH_OTHERS = {"name", "seed", "runtime", "kind", "from_model", "from_data", "on_empty", "learning_rate"} | {
    "schedule", "warmup_steps", "weight_decay", "betas", "max_grad_norm", "precision", "rewards", "steps",
    "optimizer", "save_weights", "tf32",
}  # fmt: skip


def test_the_settings_on_the_page_are_read(tmp_path: Path) -> None:
    assert BLOCKS
    for block in BLOCKS:
        (tmp_path / "recipe.yaml").write_text("stages:\n" + block)
        for stage in read_settings(tmp_path / "recipe.yaml")["stages"]:
            TypeAdapter[Any](AnyStage).validate_python(stage)


@pytest.mark.parametrize(
    "name",
    sorted(
        {*get_args(Watchdog)}
        | {*get_args(Grpo.model_fields["loss"].annotation), *get_args(Grpo.model_fields["advantage"].annotation)}
        | ({*OnlineRl.model_fields, *Grpo.model_fields, *Ppo.model_fields} - SHARED_WITH_OTHERS)
        | {*Critic.model_fields}
    ),
)
def test_it_is_on_the_page(name: str) -> None:
    assert re.search(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_])", TEXT)

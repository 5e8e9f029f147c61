"""docs/tracking.md: its settings are read, and what can be set is on the page."""

import re
from pathlib import Path
from typing import get_args

import pytest

from qwen_align.align.settings.recipe_file import read_settings
from qwen_align.align.settings.tracking import TrackerName, Tracking
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.align.tracking import to_wandb, tracker_clients

TEXT = (Path(__file__).parents[1] / "docs" / "tracking.md").read_text(encoding="utf-8")


def test_the_settings_on_the_page_are_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(block)
    assert Tracking.model_validate(read_settings(tmp_path / "recipe.yaml")["tracking"]).group == "first-try"


@pytest.mark.parametrize(
    "name",
    [*Tracking.model_fields, *get_args(TrackerName), *(name for name, kind in STAGE_KINDS.items() if kind.curve)],
)
def test_it_is_on_the_page(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT)


def test_its_times_are_those_of_the_code() -> None:
    assert f"at most {tracker_clients.FINISH_S:.0f} seconds" in TEXT
    assert f"together, {tracker_clients.LEAVE_S:.0f} when" in TEXT
    assert f"within {to_wandb.INIT_TIMEOUT_S:.0f} seconds" in TEXT

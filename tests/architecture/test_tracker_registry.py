"""The table of trackers: it agrees with the settings, and a toy tracker is added with a file, a line and a member."""

import json
from pathlib import Path
from typing import get_args

import pytest

from qwen_align.align.settings.tracking import TrackerName
from qwen_align.align.tracking.trackers import TRACKERS
from tests.evidence.planting import Copy

TOY_TRACKER = '''
"""A file of JSON lines, one for each step."""

import json
from collections.abc import Mapping
from pathlib import Path

from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.tracking.curve import Run


class JsonLines:
    library = "json"
    api_keys: tuple[str, ...] = ()

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        self._path = folder / "curve.jsonl"

    def begin(self, run: Run) -> str | None:
        return None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\\n")

    def end(self, *, is_whole: bool) -> None:
        pass

    @staticmethod
    def needs_keys(tracking: Tracking) -> bool:
        return False

    @staticmethod
    def needs_hub(tracking: Tracking) -> bool:
        return False

    @staticmethod
    def describe_destination(tracking: Tracking, group: str, folder: Path) -> str:
        return f"lines of JSON in {folder}"
'''
RECIPE = """
name: toy
models: {base: {path: %s}}
runtime: {device: cpu, threads: 1}
tracking: {to: [json_lines]}
stages:
  - {name: data, kind: build_data, builder: {kind: arithmetic, rows: trace, n: 8, steps: [1]}}
  - {name: sft, kind: sft, from_model: base, from_data: [data], max_tokens: 200, batch: 4, epochs: 1,
     learning_rate: 1e-3}
"""


def test_settings_offer_the_trackers_of_the_table() -> None:
    offered = set(get_args(TrackerName))
    assert offered == set(TRACKERS), (
        f"not in TrackerName of align/settings/tracking.py: {sorted(set(TRACKERS) - offered)}; "
        f"not in TRACKERS of align/tracking/trackers.py: {sorted(offered - set(TRACKERS))}"
    )


@pytest.mark.slow(seconds=30)
def test_a_toy_tracker_gets_a_stages_curve(tmp_path: Path, tiny_model: Path) -> None:
    copy = Copy(tmp_path / "copy")
    copy.write("align/tracking/to_json_lines.py", TOY_TRACKER)
    line = '    "json_lines": "qwen_align.align.tracking.to_json_lines:JsonLines",\n'
    copy.insert("align/tracking/trackers.py", "}\n\n\nclass Tracker", line)
    copy.insert("align/settings/tracking.py", '"tensorboard", "wandb"', '"json_lines", ')
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(RECIPE % tiny_model)
    ended = copy.python("-m", "qwen_align.cli", "run", str(recipe), "--home", str(tmp_path), limit_s=300)
    assert ended.code == 0, ended.said
    curve = (tmp_path / "runs/toy/tracking/json_lines/curve.jsonl").read_text().splitlines()
    assert [json.loads(point)["step"] for point in curve] == [1, 2]

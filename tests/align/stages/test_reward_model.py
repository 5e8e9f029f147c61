"""reward_model against its loss written out: margins are subtracted, and pairs without one are refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.rendering.samples import PairIds
from qwen_align.align.rows import Message, Pair, to_json_line
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import reward_model

MARGINS = [0.5, 1.0, 2.0, 0.0]


def pairs(margins: list[float | None]) -> list[Pair]:
    return [
        Pair(
            id=f"p{number}",
            messages=[Message(role="user", content=f"{number} + 1?")],
            chosen=Message(role="assistant", content=str(number + 1)),
            rejected=Message(role="assistant", content="I do not know"),
            margin=margin,
            mode="no_think",
            flag="/no_think",
        )
        for number, margin in enumerate(margins)
    ]


def run(base: Path, folder: Path, rows: list[Pair], **settings: Any) -> list[dict[str, Any]]:
    """As many steps as epochs: every batch holds all pairs; returns what was logged."""
    (folder / "pairs").mkdir(parents=True)
    (folder / "pairs" / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))
    parsed = RewardModel.model_validate(
        {
            "name": "scorer",
            "kind": "reward_model",
            "from_model": "base",
            "from_data": ["pairs"],
            "max_tokens": 256,
            "batch": len(rows),
            "epochs": 1,
            "learning_rate": 1e-3,
            "schedule": "constant",
            **settings,
        }
    )
    out = folder / "out"
    out.mkdir()
    reward_model.run(parsed, {"base": base, "pairs": folder / "pairs"}, out, Context(out, 0, Runtime(device="cpu")))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_margins_are_subtracted_from_the_difference_of_the_scores(tiny_model: Path, tmp_path: Path) -> None:
    """The first step's scores are 0, so its loss is that of the margins; the second's comes from the first's model."""
    run(tiny_model, tmp_path / "one", pairs([*MARGINS]), margins=True)
    first, second = run(tiny_model, tmp_path / "two", pairs([*MARGINS]), margins=True, epochs=2)
    assert first["loss"] == pytest.approx(sum(math.log1p(math.exp(margin)) for margin in MARGINS) / 4, abs=1e-4)
    scorer = reward_scorer.load_scorer(tmp_path / "one" / "out", Runtime(device="cpu"))
    rendered: list[PairIds] = [loading.load_renderer(tiny_model).render_pair(row) for row in pairs([*MARGINS])]
    chosen = torch.tensor(scorer.score_token_ids([[*pair.prompt, *pair.chosen] for pair in rendered]))
    rejected = torch.tensor(scorer.score_token_ids([[*pair.prompt, *pair.rejected] for pair in rendered]))
    expected = -logsigmoid(chosen - rejected - torch.tensor(MARGINS)).mean().item()
    assert second["loss"] == pytest.approx(expected, abs=1e-4)


def test_without_the_setting_margins_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    (first,) = run(tiny_model, tmp_path, pairs([*MARGINS]))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_pair_without_a_margin_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^row 'p1': has no margin, which reward_model's margins: true subtracts"):
        run(tiny_model, tmp_path, pairs([0.5, None]), margins=True)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()

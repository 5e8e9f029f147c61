"""Scorers: the same score alone and in a batch, from the last token and nowhere else, after every way of saving."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Completion, Message


@pytest.fixture
def one(tiny_model: Path) -> reward_scorer.Scorer:
    renderer = Renderer.load(tiny_model)
    model = reward_scorer.build_scorer_model(loading.load_model(tiny_model), renderer.pad_id)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight)
    return reward_scorer.Scorer(model, renderer, max_rows=2)


def completion(text: str, question: str = "1 + 2?", **fields: Any) -> Completion:
    prompt = [Message(role="user", content=question)]
    given = {"finish_reason": "stop", "n_tokens": 1, **fields}
    return Completion(prompt_id=question, sample=0, prompt=prompt, text=text, **given)


ROWS = [completion("3"), completion("It is three, as one sees.", "Once more: 1 + 2?"), completion("4")]


def test_a_batch_scores_as_one_by_one(one: reward_scorer.Scorer) -> None:
    together = one(ROWS)
    assert together == pytest.approx([one([row])[0] for row in ROWS], abs=1e-5)
    assert len(set(together)) == 3


def test_it_is_the_head_over_the_last_hidden_state_and_what_transformers_gives(one: reward_scorer.Scorer) -> None:
    for row, score in zip(ROWS, one(ROWS), strict=True):
        ids = torch.tensor([one.renderer.encode_for_scoring(row)])
        with torch.no_grad():
            hidden = one.model.base_model(input_ids=ids).last_hidden_state[0, -1]
            assert score == pytest.approx(float(hidden @ one.model.score.weight[0]), abs=1e-5)
            padded = torch.nn.functional.pad(ids, (0, 3), value=one.renderer.pad_id)
            assert score == pytest.approx(float(one.model(input_ids=padded).logits[0, 0]), abs=1e-5)


def test_prompt_and_answer_both_count_and_a_cut_answer_is_ended(one: reward_scorer.Scorer) -> None:
    assert one([completion("3")]) != one([completion("3", "Another question?")])
    ids = one.renderer.encode_for_scoring(completion("3", finish_reason="length"))
    assert ids == one.renderer.encode_for_scoring(completion("3"))
    assert ids[-1] == one.renderer.end_of_turn_id


def test_a_new_scorer_says_zero_of_everything(tiny_model: Path) -> None:
    renderer = Renderer.load(tiny_model)
    fresh = reward_scorer.Scorer(
        reward_scorer.build_scorer_model(loading.load_model(tiny_model), renderer.pad_id), renderer, max_rows=8
    )
    assert fresh(ROWS) == [0.0] * 3


def test_saved_and_loaded_it_scores_the_same(one: reward_scorer.Scorer, tmp_path: Path) -> None:
    one.model.save_pretrained(tmp_path)
    again = reward_scorer.Scorer(reward_scorer.load_scorer_model(tmp_path), one.renderer, max_rows=8)
    assert again(ROWS) == pytest.approx(one(ROWS), abs=1e-6)


def test_a_classifier_of_several_labels_is_no_scorer(one: reward_scorer.Scorer, tmp_path: Path) -> None:
    config = one.model.config
    config.num_labels = 3
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="gives 3 numbers; a scorer gives one"):
        reward_scorer.load_scorer_model(tmp_path)

"""The stream of prompts: passes, orders, and going on where a state was taken."""

from pathlib import Path

import pytest

from qwen_align.align.errors import DataError
from qwen_align.align.generation.requests import RenderedProblem
from qwen_align.align.rendering.renderer import Prompt
from qwen_align.align.rl.prompt_stream import PromptStream, compute_reward_variances
from qwen_align.align.rows import Message, Problem
from qwen_align.align.settings.online_rl import ByPassRate, ByVariance, PromptOrder, Shuffled


def asked(n: int = 6, **meta: object) -> list[RenderedProblem]:
    return [
        RenderedProblem(
            Problem(
                id=f"p{place}",
                messages=[Message(role="user", content="?")],
                reward="math_answer",
                meta={key: value[place] for key, value in meta.items()},  # type: ignore[index]
            ),
            None,
            None,
            Prompt([1], ""),
        )
        for place in range(n)
    ]


def names(stream: PromptStream, n: int) -> list[str]:
    return [one.rendered.problem.id for one in stream.take_prompts(n)]


def test_every_pass_has_every_prompt_once_in_another_order() -> None:
    stream = PromptStream(asked(), Shuffled(), seed=1)
    passes = [names(stream, 6) for _ in range(3)]
    assert all(sorted(one) == [f"p{n}" for n in range(6)] for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert names(PromptStream(asked(), Shuffled(), seed=1), 18) == [name for one in passes for name in one]
    assert names(PromptStream(asked(), Shuffled(), seed=2), 6) != passes[0]


def test_places_count_on_so_that_a_prompt_draws_other_numbers_every_time() -> None:
    stream = PromptStream(asked(2), Shuffled(), seed=0)
    drawn = stream.take_prompts(5)
    assert [one.position for one in drawn] == [0, 1, 2, 3, 4]
    assert len({one.request_id for one in drawn}) == 5


@pytest.mark.parametrize("order", [Shuffled(), ByPassRate(kind="pass_rate")])
def test_a_restored_stream_goes_on_as_if_nothing_had_happened(order: PromptOrder) -> None:
    one = PromptStream(asked(), order, seed=3)
    one.take_prompts(4)
    one.record_pass_rate("p2", 0.0)
    other = PromptStream(asked(), order, seed=3)
    other.restore_state(one.to_state())
    assert [(d.position, d.request_id) for d in one.take_prompts(20)] == [
        (d.position, d.request_id) for d in other.take_prompts(20)
    ]
    with pytest.raises(DataError, match="of 6 prompts, and there are 5 now"):
        PromptStream(asked(5), order, seed=3).restore_state(one.to_state())


def test_prompts_outside_the_band_are_left_out_and_tried_again_later() -> None:
    stream = PromptStream(asked(4), ByPassRate(kind="pass_rate", pass_rate_range=[0.1, 0.9], retry_every=3), seed=0)
    assert len(names(stream, 4)) == 4  # nothing is known in the first pass
    stream.record_pass_rate("p0", 0.0)
    stream.record_pass_rate("p1", 1.0)
    stream.record_pass_rate("p2", 0.5)
    assert sorted(names(stream, 2)) == ["p2", "p3"]  # p3 is not known yet
    assert sorted(names(stream, 4)) == ["p0", "p1", "p2", "p3"]  # the third pass tries all
    for name in ("p0", "p1", "p2", "p3"):
        stream.record_pass_rate(name, 1.0)
    assert sorted(names(stream, 4)) == ["p0", "p1", "p2", "p3"], "all too easy: better these than none"


def test_pass_rates_that_a_builder_noted_hold_from_the_start() -> None:
    noted = [{"n_correct": 0, "n_judged": 8, "mean": 0.0}, {"n_correct": 4, "n_judged": 8, "mean": 0.5}, 0.25, 1.0]
    order = ByPassRate(kind="pass_rate", pass_rate_range=[0.1, 0.9], pass_rate_column="pass_rate")
    assert sorted(names(PromptStream(asked(4, pass_rate=noted), order, seed=0), 2)) == ["p1", "p2"]
    with pytest.raises(DataError, match="problem 'p0': meta 'pass_rate' is 2"):
        PromptStream(asked(1, pass_rate=[2]), order, seed=0)


def test_the_highest_variance_comes_first_and_equal_ones_stay_in_order(tmp_path: Path) -> None:
    order = ByVariance.model_validate({"kind": "variance_first", "from_rollout": "draws"})
    known = compute_reward_variances({"p0": [1.0, 1.0], "p1": [0.0, 1.0], "p2": [0.0, 0.5], "p3": [1.0, 0.0]})
    assert known == {"p0": 0.0, "p1": 0.25, "p2": 0.0625, "p3": 0.25}
    stream = PromptStream(asked(5), order, seed=0, variances=known)
    assert names(stream, 5) == ["p1", "p3", "p2", "p0", "p4"]
    assert names(stream, 2) == ["p1", "p3"]

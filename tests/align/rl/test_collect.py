"""A step's play with a scripted engine: groups replaced, verdicts while later completions are drawn, what is said."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from qwen_align.align.errors import StageError
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.requests import RenderedProblem
from qwen_align.align.rendering.renderer import Prompt
from qwen_align.align.rl.collect import RolloutSetup, build_rollouts, collect_groups, wait_for_verdicts
from qwen_align.align.rl.held_out import describe_first_rollouts
from qwen_align.align.rl.judge import Judge
from qwen_align.align.rl.prompt_stream import PromptStream
from qwen_align.align.rl.step_metrics import compute_batch_metrics
from qwen_align.align.rows import Completion, Message, Problem
from qwen_align.align.settings.online_rl import Shuffled
from qwen_align.align.settings.sampling import Sampling
from qwen_align.reward.verdict import Verdict


class Scripted:
    """An engine that says the prompt's id and the sample, a token each, and takes its time."""

    has_own_weights = False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        for request in requests:
            self.asked.append(request.id)
            for sample in reversed(request.sample_numbers):  # in no order that anyone may rely on
                time.sleep(self.seconds)
                yield Generation(request, sample, [7, 1], [-0.5, -0.25], [-0.4, -0.2], "stop" if sample else "length")

    def sync_weights(self, model: Any, version: int) -> None:
        pass


class Words:
    """In the place of a renderer."""

    @staticmethod
    def decode(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def asked(n: int) -> list[RenderedProblem]:
    message = [Message(role="user", content="?")]
    problems = [Problem(id=f"p{place}", messages=message, reward="math_answer") for place in range(n)]
    return [RenderedProblem(one, None, None, Prompt([3, place], "")) for place, one in enumerate(problems)]


def collect_batch(
    worth: Callable[[Completion], float | None],
    *,
    prompts: int = 3,
    samples: int = 2,
    most: int | None = None,
    engine: Scripted | None = None,
    n: int = 8,
) -> Any:
    def verdicts(group: list[Completion]) -> list[Verdict]:
        return [Verdict(value=worth(one), reason="toy") for one in group]

    sampling = Sampling(temperature=1.0, max_tokens=2)
    renderer: Any = Words()
    one = RolloutSetup(engine or Scripted(), renderer, sampling, samples, 0, lambda verdict: verdict.value == 1)
    stream = PromptStream(asked(n), Shuffled(), seed=0)
    found = collect_groups(one, stream, Judge(verdicts), step=0, n_prompts=prompts, max_prompts=most)
    wait_for_verdicts(found, one, stream, "batch 1")
    return found, stream


def test_groups_come_whole_in_the_order_of_the_stream() -> None:
    found, stream = collect_batch(lambda one: float(one.sample))
    assert [group.draw.position for group in found.groups] == [0, 1, 2]
    assert all([one.sample for one in group.generations] == [0, 1] for group in found.groups)
    assert [group.values for group in found.groups] == [[0.0, 1.0]] * 3
    assert set(stream.pass_rates.values()) == {0.5}
    one = build_rollouts(found, mask_truncated=True)
    assert one.ids.tolist() == [
        t for group in found.groups for _ in range(2) for t in (*group.draw.rendered.prompt.ids, 7, 1)
    ]
    assert one.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert one.counts.tolist() == [False, True] * 3  # sample 0 was cut
    torch.testing.assert_close(one.sampled_logps, torch.tensor([-0.4, -0.2] * 6))
    assert one.share == 1.0


@pytest.mark.parametrize("most", [None, 8, 4])
def test_groups_of_equal_reward_are_replaced_up_to_the_bound(most: int | None) -> None:
    def worth(one: Completion) -> float:
        return float(one.sample) if int(one.prompt_id[1:]) % 2 else 1.0  # only odd prompts have a signal

    found, stream = collect_batch(worth, most=most)
    numbers = [int(group.draw.rendered.problem.id[1:]) for group in found.tried]
    odd = [number for number in numbers if number % 2]
    if most is None:
        assert len(found.tried) == len(found.groups) == 3
    else:
        assert len(found.tried) <= most
        assert [int(group.draw.rendered.problem.id[1:]) for group in found.groups] == odd[:3]
        assert len(found.groups) == 3 or len(found.tried) == most
        assert found.share == len(found.groups) / 3
        assert stream.position == len(found.tried), "a prompt that was tried is used up"


def test_without_any_signal_there_is_no_group() -> None:
    found, _ = collect_batch(lambda one: 0.0, most=6)
    assert (len(found.groups), len(found.tried)) == (0, 6)


def test_a_group_is_judged_while_later_ones_are_drawn() -> None:
    engine, judged_at = Scripted(seconds=0.02), list[tuple[str, int]]()
    lock = threading.Lock()

    def slow(one: Completion) -> float:
        with lock:
            judged_at.append((one.prompt_id, len(engine.asked)))
        time.sleep(0.02)
        return float(one.sample)

    started = time.monotonic()
    found, _ = collect_batch(slow, prompts=8, samples=2, engine=engine)
    took = time.monotonic() - started
    assert judged_at[0][1] < 8, "the first verdict came before the last prompt was asked for"
    assert took < 0.9 * (16 * 0.02 + 16 * 0.02), "drawing and judging took turns"
    assert found.seconds_waiting < 0.2


def test_a_judge_that_says_too_little_is_an_error() -> None:
    judge = Judge(lambda group: [Verdict(value=1.0, reason="toy")])
    row = Completion(
        prompt_id="p", sample=0, prompt=[Message(role="user", content="?")], text="", finish_reason="stop", n_tokens=0
    )
    with pytest.raises(StageError, match="rewards: 1 verdicts for 2 completions of 'p'"):
        judge.submit_group([row, row.model_copy(update={"sample": 1})]).result()


def test_when_nothing_can_be_judged_the_step_is_an_error() -> None:
    with pytest.raises(StageError, match=r"batch 1: none of 6 completions has a verdict.*toy \(6\)"):
        collect_batch(lambda one: None)


BY_PROMPT: list[Any] = [
    [0.0, 0.0],
    [1.0, 1.0],
    [0.0, 1.0],
    [0.5, 0.5],
    [0.0, 0.0],
    [None, 1.0],
    [None, None],
    [0.0, None],
]


def test_of_equal_rewards_it_is_said_whether_all_are_0_or_all_are_1() -> None:
    def worth(one: Completion) -> float | None:
        value: float | None = BY_PROMPT[int(one.prompt_id[1:])][one.sample]
        return value

    found, _ = collect_batch(worth, prompts=8)
    metrics = compute_batch_metrics(found)
    assert metrics["groups/no_signal_share"] == 7 / 8
    assert metrics["groups/all_zero_share"] == 3 / 8, "without verdicts that are missing"
    assert metrics["groups/all_one_share"] == 2 / 8
    judge = Judge(lambda group: [Verdict(value=worth(one), reason="toy") for one in group])
    renderer: Any = Words()
    sampling = Sampling(temperature=1.0, max_tokens=2)
    setup = RolloutSetup(Scripted(), renderer, sampling, 2, 0, lambda verdict: verdict.value == 1)
    said = describe_first_rollouts(setup, asked(8), judge)
    assert "1 of 8 groups with a signal (all 0 in 3, all 0.5 in 1, all 1 in 2)" in said

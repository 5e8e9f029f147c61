"""Many answers at once: hard ones take nothing from the others, and no thread holds the whole process up."""

import asyncio
import threading
import time

import pytest

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.base import count_cores
from qwen_align.reward.math_answer import MathAnswer
from tests.reward.math.test_resource_bombs import TEXTS

REWARD = MathAnswer()


@pytest.fixture(scope="module", autouse=True)
def _start_workers() -> None:
    """Starts the workers before any time is measured."""
    REWARD.warm_up()


def build_completion(index: int, text: str, gold: str) -> Completion:
    """Builds a completion with its gold."""
    prompt = [Message(role="user", content="?")]
    fields = {"prompt_id": f"p{index}", "sample": 0, "prompt": prompt, "finish_reason": "stop", "n_tokens": 9}
    return Completion(text=text, gold=gold, **fields)


def build_hard_answer(n: int) -> str:
    """Returns an integral that no fallback solves in time, another for each number."""
    return rf"\boxed{{\int_0^1 \frac{{\cos(x^{{{n}}})e^{{x^5}}\ln(2+x^7)}}{{1+x^{{29}}}}dx}}"


@pytest.mark.slow
def test_bombs_in_a_batch_leave_the_others_their_verdicts() -> None:
    rows = [build_completion(n, rf"\boxed{{{n}}}", str(n if n % 2 else -n - 1)) for n in range(400)]
    rows[::40] = [build_completion(n, build_hard_answer(n + 31), "3") for n in range(0, 400, 40)]
    start = time.monotonic()
    verdicts = REWARD.judge_many(rows)
    took_s = time.monotonic() - start
    assert [verdict.value for verdict in verdicts] == [float(n % 2 and n % 40 != 0) for n in range(400)]
    assert took_s < 10 / count_cores() * 1.2 + 2.0


def test_a_deadline_leaves_what_it_cuts_off_without_a_verdict() -> None:
    rows = [build_completion(n, build_hard_answer(n + 700), "3") for n in range(6)] + [
        build_completion(9, r"\boxed{5}", "5")
    ]
    start = time.monotonic()
    verdicts = REWARD.judge_many(rows, deadline=start + 0.5)
    assert time.monotonic() - start < 1.7
    assert verdicts[-1].value == 1.0
    assert {verdict.reason for verdict in verdicts[:-1]} <= {"batch deadline", "time limit"}
    assert all(verdict.value is None for verdict in verdicts if verdict.reason == "batch deadline")


@pytest.mark.slow
def test_other_threads_go_on_while_bombs_are_judged() -> None:
    done = threading.Event()

    def judge_all() -> None:
        """Judges all bombs, then sets the event."""
        for text, _ in TEXTS.values():
            REWARD.judge(text, "2002")
        done.set()

    threading.Thread(target=judge_all, daemon=True).start()
    gaps, last = [], time.monotonic()
    while not done.is_set():
        time.sleep(0.005)
        gaps.append(time.monotonic() - last)
        last += gaps[-1]
    assert max(gaps) < 0.6  # one giant integer operation would hold every thread for as long as it takes


def test_from_asyncio() -> None:
    async def judge_all() -> list[float | None]:
        texts = [rf"\boxed{{\frac{{{2 * n}}}{{4}}}}" for n in range(1, 40)]
        verdicts = [asyncio.to_thread(REWARD.judge, text, f"{n}/2") for n, text in enumerate(texts, 1)]
        return [verdict.value for verdict in await asyncio.gather(*verdicts)]

    assert asyncio.run(judge_all()) == [1.0] * 39

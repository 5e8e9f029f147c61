"""The watchdogs: each alerts to its fault with cause and setting, waits for more than one step and can stop a stage."""

import json
import math
import re
from typing import Any

import pytest

from qwen_align.align.errors import StageError
from qwen_align.align.rl.watchdogs import FIRST_STEPS, QUIET_STEPS, Watchdogs
from qwen_align.align.settings.online_rl import Watch

SOUND = {
    "reward": 0.5,
    "entropy": 1.0,
    "completions/mean_tokens": 100.0,
    "completions/clipped_share": 0.05,
    "completions/no_verdict_share": 0.0,
    "groups/no_signal_share": 0.4,
    "policy/kl": 0.01,
    "mismatch/mean": 1e-6,
    "skipped": 0.0,
}
FAULTS: list[tuple[str, dict[str, float], str]] = [
    ("truncated", {"completions/clipped_share": 0.8}, r"80% of the completions were cut.*sampling\.max_tokens"),
    ("no_signal", {"groups/no_signal_share": 0.95}, "too hard.*pass_rate"),
    ("no_signal", {"groups/no_signal_share": 0.95, "reward": 0.9}, "too easy"),
    (
        "no_signal",
        {"groups/no_signal_share": 0.95, "groups/all_zero_share": 0.9, "groups/all_one_share": 0.05, "reward": 0.6},
        r"equal \(all 0 in 90%, all 1 in 5%\), which trains nothing: the prompts are too hard",
    ),
    (
        "no_signal",
        {"groups/no_signal_share": 0.95, "groups/all_zero_share": 0.1, "groups/all_one_share": 0.85, "reward": 0.4},
        r"equal \(all 0 in 10%, all 1 in 85%\), which trains nothing: the prompts are too easy",
    ),
    ("no_verdict", {"completions/no_verdict_share": 0.7}, "70% of the completions have no verdict"),
    ("entropy", {"entropy": 0.05}, "entropy fell from 1 to 0.05.*clip_high"),
    ("length", {"completions/mean_tokens": 400.0}, "went from 100 to 400 tokens.*dr_grpo"),
    ("length", {"completions/mean_tokens": 20.0}, "went from 100 to 20 tokens.*given up thinking"),
    ("update_kl", {"policy/kl": 3.0}, "3 nats a token.*learning_rate"),
    ("engine_mismatch", {"mismatch/mean": 0.2}, "differ by 0.2 nats.*correction"),
    ("skipped", {"skipped": 1.0}, "not one group had a signal"),
    ("skipped", {"skipped": 1.0, "groups/all_one_share": 1.0}, r"signal \(all 1 in 100%\).*: the prompts are too easy"),
]


def after_a_sound_start(**settings: Any) -> Watchdogs:
    watch = Watchdogs(Watch(**settings))
    for step in range(1, FIRST_STEPS + 1):
        assert watch.check_step(step, SOUND) == []
    return watch


@pytest.mark.parametrize(("name", "fault", "said"), FAULTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FAULTS)])
def test_a_fault_that_lasts_is_told_once(name: str, fault: dict[str, float], said: str) -> None:
    watch = after_a_sound_start()
    figures = {**SOUND, **fault}
    heard = [watch.check_step(step, figures) for step in range(6, 6 + 10)]
    assert [len(alerts) for alerts in heard] == [0, 0, 1, *[0] * 7]
    ((alert,),) = [alerts for alerts in heard if alerts]
    assert (alert.watchdog, alert.step) == (name, 8)

    assert re.search(said, alert.message)
    assert [len(watch.check_step(8 + QUIET_STEPS, figures))] == [1], "it is told again after a while"


@pytest.mark.parametrize(("name", "fault", "said"), FAULTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FAULTS)])
def test_one_odd_step_is_no_alarm(name: str, fault: dict[str, float], said: str) -> None:
    watch = after_a_sound_start()
    for step in range(6, 12):
        assert watch.check_step(step, {**SOUND, **fault} if step % 2 else SOUND) == []


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name, fault, _ in FAULTS[:1] + FAULTS[3:5]])
def test_a_watchdog_told_to_stop_stops(name: str, fault: dict[str, float]) -> None:
    watch = after_a_sound_start(stop_on=[name], patience_steps=1)
    with pytest.raises(StageError, match=f"step 6: stopped by watchdog {name}: "):
        watch.check_step(6, {**SOUND, **fault})


def test_what_is_no_number_always_stops() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(StageError, match=r"step 6: loss is (nan|inf); lower learning_rate"):
            after_a_sound_start().check_step(6, {**SOUND, "loss": value})


def test_reward_up_and_accuracy_down_is_learning_the_reward() -> None:
    watch = Watchdogs(Watch())
    assert watch.check_held_out(0, 0.50, 0.02) == []
    for step, reward in enumerate([0.5, 0.6, 0.7, 0.8, 0.9], start=1):
        watch.check_step(step, {**SOUND, "reward": reward})
    assert watch.check_held_out(5, 0.48, 0.02) == [], "within the error"
    (alert,) = watch.check_held_out(6, 0.40, 0.02)
    assert alert.watchdog == "held_out"
    assert "held-out accuracy falls (50.0% at step 0 to 40.0%)" in alert.message


def test_accuracy_down_with_the_reward_is_no_hacking() -> None:
    watch = Watchdogs(Watch())
    for step in range(1, 6):
        watch.check_step(step, {**SOUND, "reward": 0.9})
    watch.check_held_out(5, 0.6, 0.02)
    for step in range(6, 12):
        watch.check_step(step, {**SOUND, "reward": 0.2})
    assert watch.check_held_out(11, 0.3, 0.02) == []


def test_the_state_goes_through_json() -> None:
    watch = after_a_sound_start()
    watch.check_step(6, {**SOUND, "completions/clipped_share": 0.9})
    watch.check_held_out(6, 0.5, 0.1)
    other = Watchdogs(Watch())
    other.restore_state(json.loads(json.dumps(watch.to_state())))
    for step in (7, 8, 9):
        figures = {**SOUND, "completions/clipped_share": 0.9, "reward": 0.9}
        assert watch.check_step(step, figures) == other.check_step(step, figures)
    assert watch.check_held_out(9, 0.1, 0.01) == other.check_held_out(9, 0.1, 0.01) != []

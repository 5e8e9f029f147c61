"""Builders that draw: the same bytes in every process, whatever Python's own hashes are."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
from qwen_align.align.rows import Chat, Completion, Message, Text, compute_rows_digest
from qwen_align.data_builders.calculator_steps import CalculatorSteps
from qwen_align.data_builders.cold_start import ColdStart
from qwen_align.data_builders.mixture import Mixture
from qwen_align.data_builders.rollout_pairs import Pairs
from qwen_align.data_builders.question_split import Split
from qwen_align.data_builders.sieve import Drops
from qwen_align.data_builders.think_mix import ThinkMix
from qwen_align.reward.verdict import Verdict

user = lambda text: Message(role="user", content=text)
said = lambda text: Message(role="assistant", content=text)
own = [
    Completion(
        prompt_id=f"p{n}", sample=k, prompt=[user(f"What is {n}+{k}?")], mode="think", finish_reason="stop",
        text=f"<think>\\nWe add {n} and {k}, {n}+{k}={n + k}\\n</think>\\n\\n\\\\boxed{{{n + k}}}", n_tokens=9 + k,
        verdicts={"math_answer": Verdict(value=float((n * k) % 3 == 0), reason="judged")},
    )
    for n in range(40) for k in range(4)
]
chats = [
    Chat(id=f"c{n}", messages=[user("a"), said("b"), user(f"{n}+1?"), said(f"{n}+1=<<{n}+1={n + 1}>>{n + 1}")])
    for n in range(40)
]
sources = {"own": lambda: iter(own), "chats": lambda: iter(chats)}
flags = {"history_share": 0.5, "earlier_flags_share": 0.5, "system_share": 0.5}
for builder in (
    ColdStart.model_validate(
        {"from_rollout": "own", "validation": [], "choose": "random", "max_prompts": 20, "per_prompt": 2}
    ),
    Pairs.model_validate({"from_data": "own", "rule": "best_vs_worst"}),
    ThinkMix.model_validate({"from_rollout": "own", "from_chats": "chats", "mixed_flags": flags}),
    Mixture.model_validate({"sources": [{"from_data": "own", "weight": 1.0}, {"from_data": "chats", "weight": 0.7}]}),
    Split.model_validate({"from_data": "own", "part": "b", "shares": {"a": 0.4, "b": 0.6}}),
    CalculatorSteps.model_validate({"from_data": "chats", "planted_share": 0.5}),
):
    drops = Drops()
    print(builder.kind, compute_rows_digest(builder.build(sources, 3, drops)), sorted(drops.counts.items()))
"""


def said(hash_seed: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    ).stdout


@pytest.mark.slow(seconds=2)
def test_bytes_do_not_depend_on_the_process() -> None:
    first = said("1")
    assert len(first.splitlines()) == 6
    assert len({line.split()[1] for line in first.splitlines()}) == 6
    assert said("2") == first

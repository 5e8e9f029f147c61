"""Every selection's bytes, whatever Python's string hash: literal digests of one small pool."""

import json
import os
import subprocess
import sys

import pytest

BUILD = """
import json
from qwen_align.align.rows import Message, Trace, compute_rows_digest
from qwen_align.data_builders.selection_domains import Domains
from qwen_align.data_builders.selection_pass_rate import PassRate
from qwen_align.data_builders.selection_limo import Limo
from qwen_align.data_builders.selection_limr import Limr
from qwen_align.data_builders.selection_s1 import S1
from qwen_align.data_builders.sieve import Drops

SOURCES = ["Idavidrein/gpqa", "qq8933/AIME_1983_2024", "other"]
pool = [
    Trace(
        id=f"{number // 2}#{number % 2}",
        messages=[Message(role="user", content=f"What is {number} + {number}?")],
        thinking="so perhaps I check " * (number * 7 % 11 + 1),
        answer=f"{2 * number}",
        reward="math_answer",
        source=SOURCES[number * 5 % 3],
        meta={
            "domain": f"d{number * number % 7}",
            "small": number % 5 == 0,
            "right": number % 4 == 0,
            "tokens": number * 37 % 101,
            "correct": number * 3 % 33,
            "rewards": [number % 3 / 2, [number % 2, 1], None, 1 - number % 5 / 4],
        },
    )
    for number in range(80)
]
limo_band = {"column": "correct", "holds": "count", "samples": 32}
features = {"solvers": [{"column": "small"}], "teacher": {"column": "right"}, "length_column": "tokens"}
builders = {
    "s1": S1.model_validate({"from_data": "pool", "n": 40, "uniform_until": 30, **features}),
    "limo": Limo.model_validate(
        {"from_data": ["pool"], "weak": {"column": "small"}, "strong": limo_band, "band": {"max_correct": 20}, "n": 12}
    ),
    "limr": Limr.model_validate({"from_data": "pool", "rewards_column": "rewards", "threshold": 0.3}),
    "pass_rate": PassRate.model_validate({"from_data": "pool", "attempts": limo_band, "band": "limo"}),
    "domains": Domains.model_validate({"from_data": "pool", "n": 20}),
}
found = {}
for name, builder in builders.items():
    drops = Drops()
    rows = list(builder.build({"pool": lambda: iter(pool)}, 5, drops))
    assert len(rows) + len(drops.rows) == len(pool), name
    found[name] = [len(rows), compute_rows_digest(rows)[:16]]
print(json.dumps(found))
"""
DIGESTS = {
    "s1": [40, "d223f2bc5273f7a9"],
    "limo": [12, "189d1af200010fd8"],
    "limr": [59, "d4bb6dbb2e1d2f86"],
    "pass_rate": [8, "135c61909de806e9"],
    "domains": [20, "1f6ff57519cf9b9b"],
}


@pytest.mark.parametrize("string_hash", ["0", "1"])
def test_bytes(string_hash: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": string_hash}
    line = [sys.executable, "-c", f"{BUILD}\nimport sys\nassert 'numpy' not in sys.modules"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == DIGESTS

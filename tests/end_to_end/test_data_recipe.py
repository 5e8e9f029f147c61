"""Selections, splits, mixtures and step labels as stages of one recipe, on the embedded model's own rollouts."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_align.align.rows import Completion, Row, Steps, Trace, read_rows, to_json_line
from qwen_align.data_builders import Arithmetic, normalize_question

pytestmark = pytest.mark.slow(seconds=5)

RECIPE = r"""
name: built
models: {base: {shipped: tiny_base}}
runtime: {device: cpu, threads: 1, generation_batch: 512, micro_batch: 64}
anchors:
  rollout: &rollout
    kind: rollout
    completions_per_prompt: 8
    sampling: {temperature: 1.0, top_p: 1.0, top_k: 0, max_tokens: 96}
    rewards: [{kind: math_answer, box: required}]
  sums: &sums {kind: arithmetic, split: train}
  sft: &sft {kind: sft, max_tokens: 256, batch: 8, learning_rate: 2e-3}
stages:
  - {name: traces, kind: build_data, builder: {<<: *sums, rows: trace, n: 300, steps: [1, 2, 3]}}
  - {<<: *sft, name: sft, from_model: base, from_data: [traces], epochs: 4}
  - {name: prompts, kind: build_data, seed: 5, builder: {<<: *sums, rows: problem, n: 60, steps: [2, 3]}}
  - {<<: *rollout, name: draws, from_model: sft, from_data: prompts}
  - name: limo_rows
    kind: build_data
    builder:
      kind: limo
      from_data: [draws]
      weak: null
      strong: {from_rollout: draws}
      band: {min_correct: 1, max_correct: 7, samples: 8}
      n: 10
  - name: rl_part
    kind: build_data
    builder: {kind: split, from_data: prompts, part: rl, shares: {rl: 0.7, rest: 0.3}}
  - {name: rl_prompts, kind: build_data, builder: {kind: unused, from_data: rl_part, unused_in: [limo_rows, traces]}}
  - name: mixed
    kind: build_data
    builder: {kind: mixture, sources: [{from_data: traces, weight: 3}, {from_data: limo_rows, weight: 1}]}
  - {<<: *sft, name: again, from_model: sft, from_data: [mixed], epochs: 1}
  - {name: solutions, kind: build_data, builder: {kind: local_file, path: solutions.jsonl, rows: typed}}
  - name: prefixes
    kind: build_data
    builder: {kind: step_prefixes, from_data: solutions, step_break: "\n", prompt: "{question}\n{steps}"}
  - {<<: *rollout, name: continued, from_model: sft, from_data: prefixes}
  - name: steps
    kind: build_data
    builder:
      kind: monte_carlo_steps
      from_data: solutions
      from_rollout: continued
      cut_after_wrong: false
      labels: soft
      step_break: "\n"
  - {name: critiques, kind: build_data, builder: {kind: step_critiques, from_data: solutions, step_break: "\n"}}
  - <<: *rollout
    name: judged
    from_model: sft
    from_data: critiques
    completions_per_prompt: 3
    rewards: [{kind: constant}]
  - name: agreed
    kind: build_data
    on_empty: pass_through
    builder: {kind: step_consensus, from_data: steps, judge: judged}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    (folder / "recipe.yaml").write_text(RECIPE)
    lines = []
    for number, row in enumerate(Arithmetic(rows="trace", n=8, steps=[3], split="train").generate(9)):
        assert isinstance(row, Trace)
        said = row.answer if number % 2 else "\\boxed{-1}"  # every other solution ends wrongly
        lines.append(to_json_line(row.model_copy(update={"answer": f"{row.thinking}\n{said}"})) + "\n")
    (folder / "solutions.jsonl").write_text("".join(lines))
    return folder


def run(home: Path) -> str:
    line = [sys.executable, "-m", "qwen_align.cli", "run", str(home / "recipe.yaml"), "--home", str(home / "home")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stages(home: Path) -> dict[str, Path]:
    run(home)
    return {path.name: path for path in (home / "home" / "runs" / "built" / "stages").iterdir()}


def rows(stages: dict[str, Path], name: str) -> list[Any]:
    return list(read_rows(stages[name] / "rows.jsonl"))


def dropped(stages: dict[str, Path], name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (stages[name] / "dropped.jsonl").read_text().splitlines()]


def test_limo_takes_the_best_chains_of_questions_that_are_neither_easy_nor_hopeless(stages: dict[str, Path]) -> None:
    draws: list[Completion] = rows(stages, "draws")
    solved = Counter(row.prompt_id for row in draws if row.verdicts["math_answer"].value == 1.0)
    kept: list[Trace] = rows(stages, "limo_rows")
    assert len(kept) == 10
    assert all(1 <= solved[row.id.rpartition("#")[0]] <= 7 for row in kept)
    assert len({row.id.rpartition("#")[0] for row in kept}) == 10
    assert sorted([row.id for row in kept] + [one["id"] for one in dropped(stages, "limo_rows")]) == sorted(
        row.id for row in draws
    )


def test_no_question_is_in_two_parts(stages: dict[str, Path]) -> None:
    asked: list[Row] = rows(stages, "rl_prompts")
    used = {normalize_question(row) for name in ("limo_rows", "traces") for row in rows(stages, name)}
    assert asked
    assert not used & {normalize_question(row) for row in asked}
    assert (
        {row.id for row in asked}
        <= {row.id for row in rows(stages, "rl_part")}
        < {row.id for row in rows(stages, "prompts")}
    )


def test_the_mixture_has_its_ratio_and_trains(stages: dict[str, Path]) -> None:
    mixed = rows(stages, "mixed")
    assert Counter(row.meta["mixture"] for row in mixed) == {"traces": 30, "limo_rows": 10}
    assert (stages["again"] / "model" / "model.safetensors").is_file()


def test_step_labels_are_the_shares_of_continuations(stages: dict[str, Path]) -> None:
    values = defaultdict(list)
    for row in rows(stages, "continued"):
        values[row.meta["solution"], row.meta["step"]].append(row.verdicts["math_answer"].value)
    labelled: list[Steps] = rows(stages, "steps")
    assert len(labelled) == 8
    for number, one in enumerate(labelled):
        *early, last = one.labels
        assert early == [sum(values[one.id, place]) / 8 for place in range(len(early))]
        assert last == float(number % 2)


def test_what_a_judge_does_not_agree_on_is_counted(stages: dict[str, Path]) -> None:
    lost = [one for one in dropped(stages, "agreed") if "#" not in one["id"]]
    assert len(rows(stages, "agreed")) + len(lost) == 8


def test_a_second_run_does_nothing(stages: dict[str, Path], home: Path) -> None:
    assert run(home).count("  stored") == len(yaml.safe_load(RECIPE)["stages"])

"""tests/gpu/run.py has a case or a reason for each line of docs/hardware.md, recipes that are right, and runs dry."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from qwen_align.align.settings.recipe import AnyStage
from tests.gpu import cases, run
from tests.gpu.cases import Case, build_stage, list_cases_of_one_gpu, list_cases_of_several_gpus
from tests.test_docs_hardware import list_paths

ONE, EIGHT = list_cases_of_one_gpu(), list_cases_of_several_gpus(8)
DRY = Namespace(device="cpu", gpus=1, only=[], tiny=True)


def test_each_line_of_the_table_has_a_case_or_a_reason() -> None:
    lines = {line for case in (*ONE, *EIGHT) for line in case.lines}
    assert lines.isdisjoint(cases.WITHOUT_CASE)
    assert lines | set(cases.WITHOUT_CASE) >= set(list_paths())
    assert lines <= {*list_paths(), *(line for line in lines if line.startswith("engine: vllm, "))}


def test_names_are_given_once() -> None:
    names = [case.name for case in (*ONE, *EIGHT)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", [*ONE, *EIGHT], ids=lambda case: case.name)
def test_a_cases_recipe_can_be_read(case: Case) -> None:
    for one in (case, cases.shrink(case)):
        stage = TypeAdapter[Any](AnyStage).validate_python(build_stage(one))
        assert stage.name == case.name


def test_the_rows_are_told_apart_and_a_step_has_enough(tmp_path: Path) -> None:
    cases.write_rows(tmp_path, n_digits=24)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 4 * cases.STEPS
    assert all(row["chosen"] != row["rejected"] for row in pairs)
    assert len({len(row["chosen"]) for row in pairs}) > 4


def test_losses_are_compared_step_by_step() -> None:
    faults, differences = run.compare_losses([10.0, 9.0], [10.01, 9.3], (0.01, 0.05))
    assert not faults
    assert differences == pytest.approx([0.001, 0.0323], rel=0.01)
    faults, _ = run.compare_losses([10.2, 9.0], [10.0, 9.5], (0.01, 0.05))
    assert faults == [
        "loss of step 1 differs by 2.0e-02, more than 0.01",
        "loss of step 2 differs by 5.3e-02, more than 0.05",
    ]
    assert run.compare_losses([float("nan")], [1.0], (0.01, 0.05))[0], "what is no number is not close to one"


def write_stage(home: Path, name: str, *steps: dict[str, float]) -> None:
    folder = home / "runs" / "gpu" / "stages" / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def test_a_case_is_judged_by_its_losses_and_its_peak(tmp_path: Path) -> None:
    case, on_gpu = next(case for case in ONE if case.name == "sft_lora"), Namespace(device="cuda")
    write_stage(tmp_path / "run", case.name, {"loss": 10.0, "memory/peak_gib": 2.0, "memory/estimate_gib": 1.0})
    not_compared = run.judge_case(case, tmp_path, on_gpu)
    assert not_compared.state == "failed"
    assert "the peak is 2.00 times the estimate" in not_compared.said
    assert "not compared" in not_compared.said
    write_stage(tmp_path / "cpu", case.name, {"loss": 10.0})
    assert run.judge_case(case, tmp_path, Namespace(device="cpu")).state == "passed"
    assert "losses within 0.0e+00 of fp32" in run.judge_case(case, tmp_path, on_gpu).said


def test_an_error_is_of_the_stage_that_it_names() -> None:
    assert run.find_blamed("stage 'sft_lora': no", ONE).name == "sft_lora"
    assert run.find_blamed("killed", ONE) is ONE[0]
    assert run.find_blamed("stage 'pairs': rows are alike", ONE) is None


def test_what_cannot_be_run_says_why() -> None:
    outcomes = {
        "sft_lora": run.Outcome("passed", "fine"),
        "sft_flash": run.Outcome("not run", "flash_attn is not installed"),
        "evaluate": run.Outcome("failed", "nothing was drawn"),
    }
    lines = run.list_lines(ONE, outcomes, Namespace(device="cuda", only=[]))
    assert lines["lora.base_weights: bf16"] == "G"
    said = "*untested on hardware* (not run: flash_attn is not installed)"
    assert lines["runtime.attention: flash_attention_2"] == said
    assert lines["evaluate"] == "*untested on hardware* (failed: nothing was drawn)"
    assert lines["runtime.nodes"].startswith("*untested on hardware* (takes several machines")
    assert run.find_reason_against(next(case for case in ONE if case.name == "memory_load"), DRY) == "needs a GPU"
    eight = next(case for case in EIGHT if case.name == "sft_ddp_x8")
    assert run.find_reason_against(eight, Namespace(device="cuda", gpus=1)) == "needs 8 GPUs"
    machine = run.Machine("2.13.0+cpu", [])
    assert "sees no GPU" in str(run.find_obstacle(machine, Namespace(device="cuda", gpus=1)))
    one = run.Machine("2.13.0", ["NVIDIA H200"])
    assert run.find_obstacle(one, Namespace(device="cuda", gpus=2)) == "--gpus 2: torch sees 1"
    assert run.find_obstacle(one, Namespace(device="cuda", gpus=1)) is None


def start_script(*options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, str(Path(run.__file__)), *options]
    return subprocess.run(
        line, env={**os.environ, **environment}, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.slow(seconds=6)
def test_without_a_gpu_it_says_which_environment_it_needs() -> None:
    said = start_script(CUDA_VISIBLE_DEVICES="")
    assert said.returncode == 2
    assert "sees no GPU" in said.stderr
    assert "pip install -c constraints.txt -e '.[qlora,deepspeed]'" in said.stderr
    assert start_script("--device", "cpu").returncode == 2, "of a CPU it runs dry alone"


@pytest.mark.slow(seconds=60)
def test_it_runs_dry(tmp_path: Path) -> None:
    names = ("sft_lora", "evaluate", "sft_flash")
    said = start_script("--device", "cpu", "--tiny", "--home", str(tmp_path), "--only", *names)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "passed   sft_lora" in said.stdout
    assert "of fp32 on the CPU" in said.stdout
    assert "| `evaluate` | dry run |" in said.stdout
    assert "not run  sft_flash" in said.stdout
    assert "A dry run: these lines are no evidence." in said.stdout
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert [stage["name"] for stage in recipe["stages"]][-2:] == ["sft_lora", "evaluate"]

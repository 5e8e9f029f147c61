"""`check --gpu`: verdicts, settings to paste, time and disk, offline and without torch; what recipes and docs say."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_align.align.commands.device_check import describe_peaks
from qwen_align.align.commands.scaling_tables import insert_tables
from qwen_align.align.estimation.device import Device
from qwen_align.align.estimation.known_configs import build_qwen3_config
from qwen_align.align.estimation.units import parse_size
from qwen_align.align.pipeline.model_configs import find_config
from qwen_align.align.pipeline.plan import plan as make_plan

ROOT = Path(__file__).parents[3]
LORA_RECIPE, QLORA_RECIPE = (ROOT / "recipes" / f"qwen3_{name}_24gb.yaml" for name in ("lora", "qlora"))


@pytest.mark.parametrize("path", [LORA_RECIPE, QLORA_RECIPE], ids=lambda path: path.stem)
def test_the_heads_of_recipes_by_card_have_todays_estimates(path: Path, tmp_path: Path) -> None:
    head = path.read_text().partition("\nname:")[0]
    revisions = dict(re.findall(r"(Qwen/Qwen3-[\d.]+B), revision: (\w{40})", path.read_text()))
    said = re.findall(r"#   ([\d.]+B)(?: on (\w+))?: (.*)", head)
    assert len(said) == len(revisions)
    for size, card, peaks in said:
        model = f"Qwen/Qwen3-{size}"
        plan = make_plan(path, tmp_path, [f"models.base={{hub: {model}, revision: {revisions[model]}}}"])
        assert describe_peaks(plan, Device(parse_size(card or "24GB"))) == peaks, f"{path.name}: {size}"
        assert peaks.endswith(": fits")


def test_docs_have_todays_tables() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert insert_tables(text) == text, "make generated"


def test_what_fits_is_said_with_every_phase(cli: Callable[..., Any]) -> None:
    said = cli("check", LORA_RECIPE, "--gpu", "24GB", "--price", "0.5")
    assert said.code == 0, said.err
    assert said.out.startswith("memory of 1 GPU of 24 GB = 22.4 GiB")
    assert re.search(r"grpo \(grpo, Qwen/Qwen3-8B\): fits: 20.6 of 22.4 in draw", said.out)
    assert re.search(r"draw +20\.6  weights 15\.3, keys and values", said.out)
    hours, price = re.findall(r"all stages together: at most ([\d.]+) h, ([\d.]+) at 0.5 per GPU hour", said.out)[0]
    assert float(price) == pytest.approx(float(hours) * 0.5, abs=0.03)
    assert "per GPU hour, without dpo\n" in said.out  # how many pairs there will be is not known
    assert re.search(r"dpo \(dpo.*?at most, for every 1,000 rows: 6\.\d M tokens trained", said.out, flags=re.DOTALL)
    assert "disk: " in said.out
    assert "prompts are taken to have up to 512 tokens" in said.out


def test_what_does_not_fit_gets_settings_with_which_it_does(cli: Callable[..., Any]) -> None:
    changes = ["--set", "runtime.micro_batch=32", "--set", "runtime.gradient_checkpointing=false"]
    said = cli("check", LORA_RECIPE, *changes, "--gpu", "24GB")
    assert "sft (sft, Qwen/Qwen3-8B): does not fit" in said.out
    assert "change runtime.micro_batch first" in said.out
    (line,) = re.findall(r"sft \(sft.*?\n +(runtime: \{.*?\})\n", said.out, flags=re.DOTALL)
    runtime = yaml.safe_load(line)["runtime"]
    pasted = [change for name, value in runtime.items() for change in ("--set", f"runtime.{name}={json.dumps(value)}")]
    again = cli("check", LORA_RECIPE, *pasted, "--gpu", "24GB")
    assert "sft (sft, Qwen/Qwen3-8B): fits" in again.out


def test_full_training_of_a_large_model_is_told_what_is_in_the_way(cli: Callable[..., Any]) -> None:
    said = cli("check", LORA_RECIPE, "--set", "stages.sft.lora=null", "--gpu", "80GB")
    assert "no runtime fits: optimiser alone: 61.0; train adapters instead (lora)" in said.out


def test_full_training_of_a_large_model_is_divided_among_cards(cli: Callable[..., Any]) -> None:
    said = cli("check", LORA_RECIPE, "--set", "stages.sft.lora=null", "--gpus", "8x80GB")
    assert "memory of 8 GPUs of 80 GB = 74.5 GiB each" in said.out
    assert "change runtime.strategy first; with this it fits" in said.out
    assert "strategy: zero2}" in said.out
    assert "with strategy ddp each GPU holds a whole replica" in said.out
    said = cli(
        "check", LORA_RECIPE, "--set", "stages.sft.lora=null", "--set", "runtime.strategy=zero2", "--gpus", "8x80GB"
    )
    assert re.search(r"^sft \(.*: fits: ", said.out, flags=re.MULTILINE)


def test_quantised_bases_are_proposed_where_no_runtime_is_enough(cli: Callable[..., Any]) -> None:
    model = "models.base={hub: Qwen/Qwen3-14B, revision: 40c069824f4251a91eefaf281ebe4c544efd3e18}"
    said = cli("check", LORA_RECIPE, "--set", model, "--gpu", "24GB")
    assert "change lora first; with this it fits" in said.out
    (pasted,) = set(re.findall(r"sft \(sft.*?\n +(lora: \{.*?\})\n", said.out, flags=re.DOTALL))
    assert yaml.safe_load(pasted)["lora"] == {"rank": 16, "alpha": 32, "base_weights": "nf4"}
    assert "no runtime fits: weights alone: 27.5; take a larger card, or a smaller model" in said.out  # rollouts


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gpu", "24"], "not an amount of memory; write 24GB"),
        (["--gpu", ""], "not an amount of memory"),
        (["--gpus", "8x"], "such as 8x80GB"),
        (["--price", "0.4"], "--price: goes with --gpu"),
        (["--gpu", "24GB", "--price", "-1"], "a number above 0 is needed"),
        (["--gpu", "24GB", "--tflops", "0"], "a number above 0 is needed"),
        (["--gpu", "24GB", "--prompt-tokens", "0"], "a whole number above 0 is needed"),
        (["--gpus", "80GB"], "write the number of GPUs"),
        (["--gpu", "24GB", "--gpus", "2x24GB"], "give one of the two"),
    ],
)
def test_wrong_sizes_are_refused(cli: Callable[..., Any], options: list[str], says: str) -> None:
    said = cli("check", LORA_RECIPE, *options)
    assert said.code == 2
    assert says in said.err.replace("\n", " ")


def test_gpus_that_a_recipe_does_not_use_yet_are_named(cli: Callable[..., Any]) -> None:
    said = cli("check", LORA_RECIPE, "--gpus", "3x80GB")
    assert "`runtime: {processes: 3}`, which the recipe has to say" in said.out
    assert "batch: 16 does not divide by 3 GPUs; estimated for runtime.processes: 1" in said.out
    set_so = cli("check", LORA_RECIPE, "--gpus", "2x80GB", "--set", "runtime.processes=2")
    assert "the recipe has to say" not in set_so.out


def test_a_stage_that_does_not_fit_has_no_time(cli: Callable[..., Any]) -> None:
    said = cli("check", LORA_RECIPE, "--gpu", "12GB", "--set", "stages.grpo.lora=null")
    grpo = said.out.partition("\ngrpo (")[2].partition("\neval_base")[0]
    assert "no runtime fits" in grpo
    assert "at most:" not in grpo
    assert re.search(r"all stages together: .*, without .*grpo", said.out)


def test_a_model_that_is_not_known_is_said_to_be_so(cli: Callable[..., Any]) -> None:
    revision = "0" * 40
    said = cli(
        "check", LORA_RECIPE, "--set", f"models.base={{hub: some/model, revision: '{revision}'}}", "--gpu", "24GB"
    )
    assert said.code == 0
    assert "some/model: its config.json is not on this machine" in said.out


def test_the_hubs_cache_is_read_before_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    plan = make_plan(LORA_RECIPE, tmp_path)
    (stage,) = plan.find_stages("grpo")
    assert find_config(plan, stage) == build_qwen3_config("8B")
    revision = plan.graph.models["base"].revision
    cached = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / str(revision) / "config.json"
    cached.parent.mkdir(parents=True)
    cached.write_text(json.dumps({"model_type": "qwen3", "hidden_size": 8}))
    assert find_config(plan, stage) == {"model_type": "qwen3", "hidden_size": 8}


WITHOUT_TORCH = """
import resource, sys
from qwen_align.cli import main
code = main(["check", sys.argv[1], "--gpu", "24GB", "--home", sys.argv[2]])
heavy = {"torch", "transformers", "numpy", "peft", "trl", "datasets", "huggingface_hub"} & set(sys.modules)
used = resource.getrusage(resource.RUSAGE_SELF)
print(code, sorted(heavy), used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def test_it_takes_about_a_second_and_no_torch(tmp_path: Path) -> None:
    """Under a second of CPU on a quiet machine; what other processes take of the caches is allowed for."""
    line = [sys.executable, "-c", WITHOUT_TORCH, str(LORA_RECIPE), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    code, heavy, seconds = done.stderr.splitlines()[-1].split()
    assert (code, heavy) == ("0", "[]")
    assert float(seconds) < 2

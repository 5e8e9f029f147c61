"""Estimates of whole stages: their phases, what each setting moves, verdicts, and settings that fit."""

from typing import Any

import pytest

from qwen_align.align.errors import RecipeError
from qwen_align.align.estimation.cost import choose_speed, count_flops_per_token, estimate_cost, estimate_disk_use
from qwen_align.align.estimation.device import CONTEXT_BYTES, FRAGMENTATION_SHARE, TOKENIZER_WORD_BYTES, Device
from qwen_align.align.estimation.known_configs import build_qwen3_config
from qwen_align.align.estimation.model_shape import read_model_shape
from qwen_align.align.estimation.stage_estimate import (
    COMPARED_TOKENS,
    StageEstimate,
    choose_checkpointing,
    estimate_stage,
    judge_fit,
)
from qwen_align.align.estimation.units import GB, GIB, format_card, parse_cards, parse_size
from qwen_align.align.models.quantization_error import N_TOKENS
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.pass_limits import CPU_TOKENS, get_pass_limits
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sft import Sft
from qwen_align.align.stages.fitting import find_fit, find_most_tokens

COMMON: dict[str, Any] = {"name": "s", "from_model": "m", "from_data": ["d"], "learning_rate": 1e-5}
LORA = {"rank": 16, "alpha": 32}
RL: dict[str, Any] = {
    **COMMON,
    "rewards": [{"kind": "math_answer"}],
    "steps": 10,
    "prompts_per_step": 8,
    "completions_per_prompt": 8,
    "sampling": {"temperature": 1.0, "max_tokens": 512},
}
CARD = Device(24 * GB)
HEAD = {"kind": "head", "learning_rate": 1e-5}


def sft(**given: Any) -> Sft:
    return Sft(kind="sft", **{**COMMON, "max_tokens": 1024, "batch": 16, "epochs": 1, **given})


def dpo(**given: Any) -> Dpo:
    return Dpo(kind="dpo", **{**COMMON, "max_tokens": 1024, "batch": 16, "epochs": 1, "beta": 0.1, **given})


def grpo(**given: Any) -> Grpo:
    return Grpo(kind="grpo", **{**RL, **given})


def evaluate(**given: Any) -> Evaluate:
    named = {key: COMMON[key] for key in ("name", "from_model", "from_data")}
    return Evaluate(kind="evaluate", **{**named, "completions_per_prompt": 1, "sampling": {"max_tokens": 64}, **given})


def ppo(**given: Any) -> Ppo:
    return Ppo(kind="ppo", **{**RL, "critic": {"kind": "separate", "learning_rate": 1e-5}, **given})


def estimate(settings: Any, size: str = "0.6B", device: Device | None = CARD, **runtime: Any) -> StageEstimate:
    found = estimate_stage(settings, Runtime(**runtime), build_qwen3_config(size), device)
    assert found is not None
    return found


def get_parts(found: StageEstimate, phase: str) -> dict[str, float]:
    (parts,) = [one.parts for one in found.phases if one.name == phase]
    return parts


def test_every_kind_has_its_phases() -> None:
    names = {
        "sft": [phase.name for phase in estimate(sft(lora=LORA)).phases],
        "dpo": [phase.name for phase in estimate(dpo(lora=LORA)).phases],
        "dpo in full": [phase.name for phase in estimate(dpo()).phases],
        "grpo": [phase.name for phase in estimate(grpo(lora=LORA)).phases],
        "vllm": [phase.name for phase in estimate(grpo(engine="vllm")).phases],
    }
    assert names == {
        "sft": ["load", "update", "save"],
        "dpo": ["load", "update", "save"],
        "dpo in full": ["load", "score", "update", "save"],
        "grpo": ["load", "draw", "score", "update", "save"],
        "vllm": ["load", "draw", "score", "update", "sync", "save"],
    }
    assert [phase.name for phase in estimate(evaluate()).phases] == ["load", "draw"]
    built = BuildData(
        kind="build_data", name="s", builder={"kind": "arithmetic", "rows": "problem", "n": 1, "steps": [1]}
    )
    assert estimate_stage(built, Runtime(), build_qwen3_config("0.6B")) is None


def test_weights_gradients_and_moments_are_those_of_the_method() -> None:
    shape = read_model_shape(build_qwen3_config("8B"))
    full = get_parts(estimate(sft(), "8B"), "update")
    assert (full["weights"], full["optimiser"]) == (4.0 * shape.n_parameters, 8.0 * shape.n_parameters)
    adapted = get_parts(estimate(sft(lora=LORA), "8B"), "update")
    assert adapted["weights"] == 2.0 * shape.n_parameters
    assert (adapted["gradients"], adapted["optimiser"]) == (adapted["adapters"], 2 * adapted["adapters"])
    quantised = get_parts(estimate(sft(lora={**LORA, "base_weights": "nf4"}), "8B"), "update")
    assert quantised["weights"] < 0.4 * adapted["weights"]
    in_fp32 = get_parts(estimate(sft(lora=LORA, precision="fp32"), "8B"), "update")
    assert in_fp32["weights"] == 2 * adapted["weights"]
    small = get_parts(estimate(sft(lora=LORA, optimizer="adamw_8bit"), "8B"), "update")
    assert small["optimiser"] == pytest.approx(adapted["optimiser"] / 4, rel=0.02)


def test_the_engines_copy_of_the_weights_and_the_reference_count() -> None:
    shape = read_model_shape(build_qwen3_config("0.6B"))
    settings, engine = grpo(engine="vllm"), {"gpu_memory_utilization": 0.4}
    for phase in ("draw", "update", "sync"):
        assert get_parts(estimate(settings, engine=engine), phase)["engine"] == 0.4 * CARD.n_bytes
    asleep = estimate(settings, engine={**engine, "enable_sleep_mode": True})
    assert "engine" in get_parts(asleep, "draw")
    assert "engine" not in get_parts(asleep, "update")
    assert get_parts(estimate(grpo()), "draw")["drawing copy"] == 2.0 * shape.n_parameters
    with_kl = estimate(grpo(kl={"coefficient": 0.1}))
    assert get_parts(with_kl, "update")["reference"] == 2.0 * shape.n_parameters
    assert "reference" not in get_parts(estimate(grpo(kl={"coefficient": 0.1}, lora=LORA)), "update")


def test_a_critic_counts_with_its_gradients_and_activations() -> None:
    separate = estimate(ppo(), device=None, gradient_checkpointing=False)
    head = estimate(ppo(critic=HEAD), device=None, gradient_checkpointing=False)
    shape = read_model_shape(build_qwen3_config("0.6B"))
    assert get_parts(separate, "update")["critic"] > 8.0 * (shape.n_parameters - 1)
    assert get_parts(head, "update")["critic"] < 1e5
    assert get_parts(separate, "update")["activations"] > 1.9 * get_parts(head, "update")["activations"]


def test_a_reward_model_has_no_logits_and_a_small_head() -> None:
    given = {**COMMON, "max_tokens": 1024, "batch": 16, "epochs": 1, "lora": LORA}
    found = get_parts(estimate(RewardModel(kind="reward_model", **given), "8B"), "update")
    assert "logits" not in found
    assert found["weights"] < get_parts(estimate(sft(lora=LORA), "8B"), "update")["weights"] - 1e9


def test_keys_and_values_fill_what_is_free_but_hold_one_completion() -> None:
    settings = grpo(lora=LORA, sampling={"temperature": 1.0, "max_tokens": 4096})
    drawn = estimate(settings, "8B", micro_batch=1, prefill_tokens=512)
    assert drawn.judge(CARD) == "fits"
    assert 0.91 < get_total(drawn, "draw") / CARD.n_bytes <= 0.92
    assert drawn.rows_at_once is not None
    assert 1 <= drawn.rows_at_once < 64
    limited = estimate(grpo(lora=LORA), "8B", kv_cache_gib=1.0)
    assert get_parts(limited, "draw")["keys and values"] == GIB
    few = get_parts(estimate(grpo(lora=LORA), "0.6B", device=None), "draw")
    assert few["keys and values"] == 64 * (512 + 512 - 1) * 112 * 1024


def test_prompts_are_read_once_and_on_a_cpu_before_their_completions_take_memory() -> None:
    of_token, settings, config = 112 * 1024, grpo(lora=LORA), build_qwen3_config("0.6B")
    on_gpu = get_parts(estimate(settings, device=None), "draw")
    assert 8 * 512 * of_token < on_gpu["activations"] < 10 * 512 * of_token
    assert on_gpu["keys and values"] == 64 * 1023 * of_token
    on_cpu = estimate_stage(settings, Runtime(), config, is_on_gpu=False)
    assert on_cpu is not None
    drawn = get_parts(on_cpu, "draw")
    assert drawn["keys and values"] == 64 * 1023 * of_token
    assert "activations" not in drawn
    short = grpo(lora=LORA, sampling={"temperature": 1.0, "max_tokens": 32})
    read = estimate_stage(short, Runtime(), config, is_on_gpu=False)
    assert read is not None
    assert get_parts(read, "draw")["keys and values"] == 64 * 512 * of_token


def get_total(found: StageEstimate, phase: str) -> float:
    return sum(get_parts(found, phase).values())


def test_a_micro_batch_is_bounded_by_rows_tokens_and_what_a_step_has() -> None:
    def count_tokens(settings: Any, **runtime: Any) -> int:
        batch = estimate(settings, **runtime).micro_batch
        assert batch
        return batch.n_tokens

    assert count_tokens(sft(), micro_batch=4) == 4 * 1024
    assert count_tokens(sft(), micro_batch=64) == 16 * 1024
    assert count_tokens(sft(), micro_batch=64, micro_batch_tokens=3000) == 3000
    assert count_tokens(sft(), micro_batch=64, micro_batch_tokens=30) == 1024  # a longer row goes alone
    assert count_tokens(sft(), micro_batch=64, processes=4) == 4 * 1024
    assert count_tokens(dpo(), micro_batch=4) == 8 * 1024
    assert count_tokens(grpo(), micro_batch=4) == 4 * 1024
    on_cpu = estimate_stage(sft(), Runtime(micro_batch=16), build_qwen3_config("0.6B"), is_on_gpu=False)
    assert on_cpu is not None
    assert on_cpu.micro_batch is not None
    assert on_cpu.micro_batch.n_tokens == CPU_TOKENS
    # A step of one prompt has it once.
    assert count_tokens(grpo(prompts_per_step=1), micro_batch=64) == 512 + 8 * 512


def test_on_a_cpu_frozen_weights_as_their_files_have_them_are_pages_of_these() -> None:
    """0.6B: 440,401,920 parameters of linear layers, 596,049,920 in all; a half and 1/64 + 1/4096 bytes in nf4."""

    def count_weights(settings: Any, **loaded: Any) -> float:
        found = estimate_stage(settings, Runtime(), build_qwen3_config("0.6B"), is_on_gpu=False, **loaded)
        assert found is not None
        n_tokenizers = 3 if found.model else 2  # a stage that trains reads transformers' too
        assert get_parts(found, "load")["overhead"] == n_tokenizers * TOKENIZER_WORD_BYTES * 151_936
        return get_parts(found, "load").get("weights", 0.0)

    asked: dict[str, Any] = {"name": "s", "from_model": "m", "from_data": ["d"], "sampling": RL["sampling"]}
    drawn = Evaluate(kind="evaluate", completions_per_prompt=1, **asked)
    assert count_weights(sft(lora=LORA)) == count_weights(drawn) == 0
    assert count_weights(sft(lora=LORA), merges_adapters=True) == 2 * 440_401_920
    assert count_weights(drawn, merges_adapters=True) == 2 * 440_401_920
    assert count_weights(sft(lora={**LORA, "base_weights": "nf4"})) == 440_401_920 * (0.5 + 1 / 64 + 1 / 4096)
    in_4_bits = estimate_stage(
        sft(lora={**LORA, "base_weights": "nf4"}), Runtime(), build_qwen3_config("0.6B"), is_on_gpu=False
    )
    assert in_4_bits is not None
    assert get_parts(in_4_bits, "compare")["merged weights"] == 2 * 440_401_920
    assert COMPARED_TOKENS == N_TOKENS
    assert count_weights(sft(lora={**LORA, "base_weights": "fp32"})) == 4 * 596_049_920
    assert count_weights(sft()) == 4 * 596_049_920


def test_overhead_is_stated_and_verdicts_have_their_bounds() -> None:
    parts = get_parts(estimate(sft(lora=LORA)), "load")
    tensors = sum(n_bytes for name, n_bytes in parts.items() if name != "overhead")
    assert parts["overhead"] == pytest.approx(CONTEXT_BYTES + FRAGMENTATION_SHARE * tensors)
    assert [judge_fit(share, 1.0) for share in (0.91, 0.93, 1.01)] == ["fits", "tight", "does not fit"]


def test_checkpointing_by_auto_is_on_above_half_of_the_memory() -> None:
    config = build_qwen3_config("0.6B")
    without = get_total(estimate(sft(lora=LORA), device=None, gradient_checkpointing=False), "update")
    for device_bytes, wanted in ((2.1 * without, False), (1.9 * without, True)):
        assert choose_checkpointing(sft(lora=LORA), Runtime(), config, round(device_bytes)) is wanted
        assert estimate(sft(lora=LORA), device=Device(round(device_bytes))).checkpointing is wanted
    for said in (True, False):
        asked = Runtime(gradient_checkpointing=said)
        assert choose_checkpointing(sft(), asked, config, 1) is said
    unknown = {"model_type": "gemma"}
    assert choose_checkpointing(sft(), Runtime(), unknown, 10**15)
    assert choose_checkpointing(ppo(), Runtime(), config, 1)
    assert choose_checkpointing(ppo(lora=LORA, critic=HEAD), Runtime(), config, 1)


def test_activations_under_two_adapters_are_never_computed_again() -> None:
    """PPO's critic is an adapter on the policy's trunk: a pass computed again would be under the wrong one."""
    settings, config = ppo(lora=LORA), build_qwen3_config("0.6B")
    assert not choose_checkpointing(settings, Runtime(), config, 1)
    assert not choose_checkpointing(settings, Runtime(), {"model_type": "gemma"}, 1)
    assert estimate(settings, device=Device(1)).checkpointing is False
    assert estimate(settings).judge(CARD) == "does not fit"
    fit = find_fit(settings, Runtime(), config, CARD)
    assert fit is not None
    settings.check_runtime(Runtime(**fit.runtime))
    assert list(fit.runtime) == ["micro_batch"]


def test_settings_that_fit_name_every_change() -> None:
    engine = {"gpu_memory_utilization": 0.4}
    fit = find_fit(grpo(engine="vllm"), Runtime(engine=engine), build_qwen3_config("1.7B"), CARD)
    assert fit is not None
    assert fit.runtime["engine"] == {"gpu_memory_utilization": 0.3, "enable_sleep_mode": True}
    assert fit.stage == {"optimizer": "adamw_8bit"}
    again = grpo(engine="vllm", optimizer=fit.stage["optimizer"])
    assert estimate(again, "1.7B", **fit.runtime).peak == fit.estimate.peak


def test_an_engine_elsewhere_takes_nothing_of_the_stages_device_and_one_beside_a_cpu_its_weights_and_keys() -> None:
    settings, shape = grpo(engine="vllm"), read_model_shape(build_qwen3_config("0.6B"))
    own = {"where": "own_gpus", "gpus": [7]}
    assert "engine" not in get_parts(estimate(settings, engine=own), "draw")
    found = estimate_stage(settings, Runtime(kv_cache_gib=2.0), build_qwen3_config("0.6B"), is_on_gpu=False)
    assert found is not None
    assert get_parts(found, "draw")["engine"] == 2.0 * shape.n_parameters + 2 * 2**30
    alone = get_parts(estimate(evaluate(engine="vllm")), "draw")
    assert alone["engine"] == 0.9 * CARD.n_bytes, "nothing is trained beside it"
    assert "weights" not in alone, "this process has let its model go"


@pytest.mark.parametrize("size", ["8B", "14B"])
@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_what_is_said_to_fit_does(make: Any, size: str) -> None:
    settings = make(lora=LORA)
    config = build_qwen3_config(size)
    assert estimate(settings, size).judge(CARD) != "fits"
    fit = find_fit(settings, Runtime(), config, CARD)
    assert fit is not None
    assert fit.estimate.judge(CARD) == "fits"
    runtime = Runtime(**fit.runtime)
    lora = {**LORA, **fit.stage.get("lora", {})}
    assert bool(fit.stage) == (size == "14B")  # what leaves the result as it is comes first
    again = estimate_stage(make(lora=lora), runtime, config, CARD)
    assert again is not None
    assert again.peak.total == fit.estimate.peak.total


def test_what_nothing_helps_has_no_fit() -> None:
    assert find_fit(sft(), Runtime(), build_qwen3_config("8B"), CARD) is None
    assert find_most_tokens(sft(), Runtime(micro_batch=1), build_qwen3_config("8B"), CARD)[0] is None
    tokens, found = find_most_tokens(sft(lora=LORA), Runtime(micro_batch=1), build_qwen3_config("8B"), CARD)
    assert tokens == 4096
    assert found.judge(CARD) == "fits"
    assert estimate(sft(lora=LORA, max_tokens=8192), "8B", micro_batch=1).judge(CARD) != "fits"


def test_micro_batch_tokens_take_the_place_of_micro_batch() -> None:
    """As `get_pass_limits` has it, also where they allow more."""
    limits = get_pass_limits(Runtime(micro_batch=1, micro_batch_tokens=8192), "cuda")
    found = estimate(sft(), micro_batch=1, micro_batch_tokens=8192)
    assert found.micro_batch is not None
    assert found.micro_batch.n_tokens == limits.compute_budget([1024]) == 8192
    settings, config = sft(max_tokens=4096), build_qwen3_config("0.6B")
    fit = find_fit(settings, Runtime(micro_batch_tokens=131_072, gradient_checkpointing=True), config, CARD)
    assert fit is not None
    assert list(fit.runtime) == ["micro_batch_tokens"]
    assert 4096 <= fit.runtime["micro_batch_tokens"] < 65_536


def test_a_cache_that_is_too_large_and_sampling_in_fp32_are_what_is_changed() -> None:
    config = build_qwen3_config("8B")
    fit = find_fit(evaluate(), Runtime(kv_cache_gib=24), config, CARD)
    assert fit is not None
    assert (fit.runtime, fit.stage) == ({"kv_cache_gib": None}, {})
    fit = find_fit(evaluate(), Runtime(prefill_tokens=131_072), config, CARD)
    assert fit is not None
    assert (list(fit.runtime), fit.stage) == (["prefill_tokens"], {})
    fit = find_fit(evaluate(precision="fp32"), Runtime(), config, CARD)
    assert fit is not None
    assert (fit.runtime, fit.stage) == ({}, {"precision": "bf16"})


def test_operations_and_disk() -> None:
    shape = read_model_shape(build_qwen3_config("0.6B"))
    linear = shape.linear + shape.vocabulary * shape.layer.hidden
    for is_trained, is_frozen, times in ((True, False, 6), (True, True, 4), (False, True, 2)):
        flops = count_flops_per_token(shape, length=0, is_trained=is_trained, has_frozen_base=is_frozen)
        assert flops == times * linear
    found = estimate(sft())
    cost = estimate_cost(found, choose_speed(CARD.n_bytes), n_devices=1, n_rows=32, prompt_tokens=0)
    assert cost.trained_tokens == 2 * 16 * 1024
    twice = estimate_cost(found, choose_speed(CARD.n_bytes), n_devices=2, n_rows=32, prompt_tokens=0)
    assert twice.seconds == cost.seconds / 2
    for rate, n_bytes in ((1e-5, 2), (1e-6, 4)):  # a model that is trained at a low rate is handed on in fp32
        settings = sft(learning_rate=rate)
        disk = estimate_disk_use(settings, estimate(settings))
        assert disk == (n_bytes * shape.n_parameters + 75 * 151_936, 12 * shape.n_parameters)


def test_sizes_tell_gb_from_gib() -> None:
    assert parse_size("24GB") == 24 * 10**9
    assert parse_size("24 GiB") == 24 * 2**30
    assert parse_size("0.5TB") == 5 * 10**11
    assert parse_cards("8x80GB") == (8, 80 * 10**9)
    assert format_card(24 * GB) == "24 GB = 22.4 GiB"
    assert parse_size("24gb") == parse_size("24GB") < parse_size("24gib")
    assert parse_cards("8 X 80gb") == parse_cards("8×80GB")
    for wrong in ("24", "A100", "GB", "0GB", "-3GB", "24GB2"):
        with pytest.raises(RecipeError, match="write 24GB"):
            parse_size(wrong)
    for wrong in ("80GB", "0x80GB", "x80GB", "ax80GB", "8x", "80GBx8"):
        with pytest.raises(RecipeError, match="8x80GB"):
            parse_cards(wrong)

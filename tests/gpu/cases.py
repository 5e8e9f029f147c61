"""What tests/gpu/run.py trains and draws: each case is a stage of a few steps, and the lines of docs/hardware.md it is.

A case that needs what is not there, or several GPUs, is left out with the reason, as are the lines that have no case.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 3
ADAPTERS = {"rank": 16, "alpha": 32}
LORA = {"lora": ADAPTERS}
TRAINED = {"batch": 4, "learning_rate": 1e-4, "precision": "bf16"}
# Losses of bf16 against fp32: rounding moves one by up to 2**-8, and later ones by what the updates make of that.
IN_BF16, IN_FP32 = (0.01, 0.05), (1e-4, 2e-3)
OF_PAIRS = (0.01, 0.15)  # a loss of differences of sums of log-probs; 0.046 was seen between bf16 and fp32 on a CPU
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")

# Lines of docs/hardware.md that no case is of, with the reason.
WITHOUT_CASE = {
    "runtime.deepspeed": "a file of the user's own: try it with your own recipe",
    "runtime.nodes": "takes several machines: `qwen-align doctor` on each, then docs/cluster.md",
    "launch --slurm": "takes a cluster with Slurm",
    "launch --hosts": "takes machines that are reached by SSH",
    "engine: vllm, server": "takes a server that runs already",
    "mixtures of experts": "takes a mixture's folder: try it with your own recipe",
    "YaRN": "takes rows of more than 32,768 tokens: try it with your own recipe",
}


@dataclass(frozen=True)
class Case:
    """A stage, and what is asked of it.

    stage: its settings; rows: which data set it reads. lines: of docs/hardware.md. tolerance: of the relative
    difference to the same losses on the CPU in fp32, of the first step and of later ones; None where there are none to
    compare, as of completions, which other hardware draws otherwise. packages: those that have to be there. fails_in:
    the phase in which it has to run out of memory, with so many GiB free on the GPU.
    """

    name: str
    stage: dict[str, Any]
    lines: tuple[str, ...]
    rows: str = "chats"
    tolerance: tuple[float, float] | None = None
    packages: tuple[str, ...] = ()
    gpus: int = 1
    fails_in: str | None = None
    free_gib: float | None = None
    runtime: dict[str, Any] = field(default_factory=dict)


def _sft(name: str, lines: str, *, runtime: dict[str, Any] | None = None, **settings: Any) -> Case:
    changed = {"packages": settings.pop("packages", ()), "tolerance": settings.pop("tolerance", IN_BF16)}
    stage = {"kind": "sft", "max_tokens": 512, "epochs": 1, **TRAINED, **settings}
    return Case(name, stage, tuple(lines.split("; ")), runtime=runtime or {}, **changed)


def _on_pairs(kind: str, name: str, **settings: Any) -> Case:
    stage = {"kind": kind, "max_tokens": 512, "epochs": 1, **TRAINED, **settings}
    if kind == "dpo":
        stage["beta"] = 0.1
    # The head of a reward model is new, and drawn by the device's own random numbers.
    return Case(name, stage, (f"{kind}, ddp",), rows="pairs", tolerance=OF_PAIRS if kind == "dpo" else None)


def _online(kind: str, name: str, lines: str, *, runtime: dict[str, Any] | None = None, **settings: Any) -> Case:
    packages = settings.pop("packages", ())
    stage = {
        "kind": kind,
        "learning_rate": 1e-5,
        "precision": "bf16",
        "steps": STEPS,
        "prompts_per_step": 4,
        "completions_per_prompt": 4,
        "sampling": {"temperature": 1.0, "max_tokens": 64},
        "rewards": [{"kind": "random"}],
        **settings,
    }
    return Case(name, stage, tuple(lines.split("; ")), rows="problems", runtime=runtime or {}, packages=packages)


def _drawing(kind: str, name: str, **settings: Any) -> Case:
    stage = {"kind": kind, "completions_per_prompt": 2, "sampling": {"temperature": 1.0, "max_tokens": 64}, **settings}
    if kind == "rollout":
        stage["rewards"] = [{"kind": "math_answer"}]
    return Case(name, stage, (kind,), rows="problems")


def list_cases_of_one_gpu() -> list[Case]:
    """Lists what one card is asked for, what matters most first: time may be over before the end."""
    nf4 = {"lora": {**ADAPTERS, "base_weights": "nf4"}}
    return [
        _sft(
            "sft_full",
            "sft, ddp; precision: bf16; optimizer: adamw; sequence packing; head in tiles; runtime.attention: sdpa",
        ),
        _sft("sft_lora", "lora.base_weights: bf16", **LORA),
        _sft("sft_qlora", "lora.base_weights: nf4", **nf4, packages=("bitsandbytes",), tolerance=None),
        _on_pairs("dpo", "dpo_lora", **LORA),
        _online(
            "grpo",
            "grpo_lora",
            "grpo, ddp; engine: local; fused decoding",
            **LORA,
            kl={"coefficient": 0.01, "apply_to": "loss"},
        ),
        _drawing("evaluate", "evaluate"),
        _sft("sft_fp32", "precision: fp32", precision="fp32", tolerance=IN_FP32),
        _sft("sft_8bit", "optimizer: adamw_8bit", optimizer="adamw_8bit", packages=("bitsandbytes",)),
        _sft("sft_paged", "optimizer: paged_adamw", optimizer="paged_adamw", packages=("bitsandbytes",)),
        _sft("sft_paged_8bit", "optimizer: paged_adamw_8bit", optimizer="paged_adamw_8bit", packages=("bitsandbytes",)),
        _sft("sft_recomputed", "runtime.gradient_checkpointing", runtime={"gradient_checkpointing": True}, **LORA),
        _sft("sft_offloaded", "runtime.activation_offloading", runtime={"activation_offloading": True}, **LORA),
        _sft(
            "sft_flash",
            "runtime.attention: flash_attention_2",
            runtime={"attention": "flash_attention_2"},
            packages=("flash_attn",),
            **LORA,
        ),
        _sft("sft_eager", "runtime.attention: eager", runtime={"attention": "eager"}, **LORA),
        _on_pairs("reward_model", "reward_model_lora", **LORA),
        _online("ppo", "ppo_lora", "ppo, ddp", **LORA, critic={"kind": "head", "learning_rate": 1e-4}),
        _drawing("rollout", "rollout"),
        _sft("sft_tf32", "tf32", precision="fp32", tf32=True, tolerance=(2e-3, 1e-2)),  # 10 bits of mantissa
        _sft("sft_dora", "lora.dora", lora={**ADAPTERS, "dora": True}),
        _sft("sft_lora_fp32", "lora.base_weights: fp32", precision="fp32", tolerance=IN_FP32, **LORA),
        _online("grpo", "grpo_trl", "trainer: trl", trainer="trl", **LORA),
        Case("pretrain", _PRETRAINING, ("pretrain",), rows="texts"),
        *_list_vllm_cases(),
        *_list_cases_without_memory(),
    ]


_PRETRAINING: dict[str, Any] = {
    "kind": "pretrain",
    "steps": STEPS,
    "batch": 4,
    "sequence_length": 64,
    "warmup_steps": 1,
}


def _list_cases_without_memory() -> list[Case]:
    """Lists what has to run out of memory, in each phase, with a message that names it.

    Sizes are of Qwen3-0.6B: 1.1 GiB of weights in bf16; trained in full 2.2, gradients 2.2 and moments 4.4 in fp32; 112
    KiB of keys and values a token, so 7 GiB for 128 completions of 512 tokens. A context takes about half a GiB.
    """
    full = {"kind": "sft", "max_tokens": 512, "epochs": 1, **TRAINED}
    drawn = _online("grpo", "", "", **LORA, prompts_per_step=8, completions_per_prompt=16).stage
    drawn |= {"sampling": {"temperature": 1.0, "max_tokens": 512}}
    return [
        Case("memory_load", full, (), fails_in="load", free_gib=1.6),
        Case("memory_update", full, (), fails_in="update", free_gib=6.0),
        Case("memory_draw", drawn, (), "problems", fails_in="draw", free_gib=4.0, runtime={"kv_cache_gib": 1000.0}),
    ]


def _list_vllm_cases() -> list[Case]:
    """Lists vLLM's places, and one copy of the model on two cards."""
    places = {
        "beside": ({"where": "beside"}, 1),
        "own_gpus": ({"where": "own_gpus", "gpus": [1]}, 2),
        "tensor_parallel": ({"where": "own_gpus", "gpus": [1, 2], "tensor_parallel": 2}, 3),
    }
    return [
        _with_gpus(
            _online("grpo", f"grpo_vllm_{place}", f"engine: vllm, {place}", engine="vllm", runtime={"engine": how}),
            gpus,
        )
        for place, (how, gpus) in places.items()
    ]


def _with_gpus(case: Case, gpus: int) -> Case:
    return Case(**{**case.__dict__, "gpus": gpus})


def list_cases_of_several_gpus(gpus: int) -> list[Case]:
    """Lists what several cards of one machine are asked for: each kind of stage under each strategy."""
    cases = []
    base = {case.stage["kind"]: case for case in list_cases_of_one_gpu() if case.name in _SPREAD}
    for strategy in STRATEGIES:
        packages = ("deepspeed",) if strategy.startswith("zero") else ()
        for kind, case in base.items():
            stage = {name: value for name, value in case.stage.items() if name != "lora"}
            rows = {"batch": gpus} if "batch" in stage else {"prompts_per_step": gpus}
            cases.append(
                Case(
                    f"{kind}_{strategy}_x{gpus}",
                    {**stage, **rows},
                    (f"{kind}, {strategy}",),
                    case.rows,
                    packages=packages,
                    gpus=gpus,
                    runtime={"processes": gpus, "strategy": strategy},
                )
            )
    sft = base["sft"].stage
    for offload, strategy in (("optimizer", "zero2"), ("parameters", "zero3")):
        runtime = {"processes": gpus, "strategy": strategy, "offload": offload}
        stage = {**sft, "batch": gpus}
        line = f"runtime.offload: {offload}"
        cases.append(Case(f"sft_{offload}", stage, (line,), packages=("deepspeed",), gpus=gpus, runtime=runtime))
    return cases


_SPREAD = ("sft_full", "dpo_lora", "reward_model_lora", "grpo_lora", "ppo_lora")


def shrink(case: Case) -> Case:
    """Returns a case for the embedded model, whose rows have few tokens."""
    stage = dict(case.stage)
    if "max_tokens" in stage:
        stage["max_tokens"] = 256
    if "sampling" in stage:
        stage["sampling"] = {**stage["sampling"], "max_tokens": 16}
    return Case(**{**case.__dict__, "stage": stage})


def write_rows(folder: Path, *, n_digits: int) -> None:
    """Writes the data sets: rows of sums, each of which takes some 6 tokens of the embedded tokenizer a digit.

    A random model learns nothing of them; they are there to have lengths that differ.
    """

    def say(number: int, length: int) -> str:
        return " ".join(f"{number + place} + {place} = {number + 2 * place}." for place in range(length))

    chats, pairs, problems = [], [], []
    for number in range(4 * STEPS):
        length = 2 + (number * 5) % n_digits
        asked = {"role": "user", "content": f"count on from {number}"}
        chats.append({"messages": [asked, {"role": "assistant", "content": say(number, length)}]})
        pairs.append(
            {"prompt": f"count on from {number}", "chosen": say(number, length), "rejected": say(number + 50, length)}
        )
        problems.append({"question": f"What is {number} + {number}?", "answer": f"#### {2 * number}"})
    for name, rows in (("chats", chats), ("pairs", pairs), ("problems", problems)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def list_data_stages(folder: Path) -> list[dict[str, Any]]:
    """Lists the stages that build the data sets from the files that `write_rows` has written."""
    formats = {"chats": ("messages", "chat"), "pairs": ("preference", "pair"), "problems": ("gsm8k", "problem")}
    stages: list[dict[str, Any]] = []
    for name, (file_format, rows) in formats.items():
        builder = {
            "kind": "local_file",
            "path": str(folder / f"{name}.jsonl"),
            "format": file_format,
            "rows": rows,
        }
        if name != "problems":
            builder["mode"] = "no_think"
        stages.append({"name": name, "kind": "build_data", "builder": builder})
    texts = {"kind": "arithmetic", "rows": "text", "n": 200, "steps": [2]}
    return [*stages, {"name": "texts", "kind": "build_data", "builder": texts}]


def build_stage(case: Case, **runtime: Any) -> dict[str, Any]:
    """Returns a case's stage as a recipe has it."""
    stage = {"name": case.name, **case.stage}
    if case.stage["kind"] == "pretrain":
        stage["from_data"] = case.rows
    elif case.stage["kind"] == "rollout":
        stage |= {"from_model": "base", "from_data": case.rows}
    else:
        stage |= {"from_model": "base", "from_data": [case.rows]}
    return {**stage, "runtime": {**case.runtime, **runtime}}

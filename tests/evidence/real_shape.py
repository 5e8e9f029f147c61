"""Memory of stages at Qwen3-0.6B's real shape: 28 layers, 151,936 words, the real tokenizer, random weights in bf16.

Each case is a stage of a few steps on a CPU, killed after its first checkpoint and run again to its end. Its figure is
the largest sum of anonymous resident memory of all its processes, read every 50 ms, less the same figure of the same
recipe with the embedded model of half a million parameters on rows of a few tokens, which is what imports and processes
take. Pages that a fork shares with its parent count twice. A case named trl_... is plain TRL, with the same weights,
micro-batch, checkpointing and loss.

    python tests/evidence/real_shape.py [--home FOLDER] [--out FILE] [--limit-gib 12] [--tokenizer FOLDER]
        [--fp32-products] [--layers 28] [CASE ...]

Writes a JSON line a case and prints a table; ends with 1 where a case fails or is above the limit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

GIB = 1 << 30
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40_960,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}
TOKENIZER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "qwen3_tokenizer"
FP32_PRODUCTS = Path(__file__).resolve().parent / "fp32_products"
LORA = {"lora": {"rank": 16, "alpha": 32}}
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
QLORA = {"lora": {"rank": 16, "alpha": 32, "base_weights": "nf4"}}
STEPS = 3
TRL_STEPS = 2  # the second has moments and gradients, as all after it


class Case(NamedTuple):
    """A stage, the settings that are its own, and the rows it reads: how many a step, and of how many tokens.

    steps: one is not killed, for its checkpoint comes at the end. answer: tokens of a row in the loss; None = all but
    16. shape: what the model has that others do not. precision: of its files and of the computation.
    """

    kind: str
    settings: dict[str, Any]
    rows: int
    tokens: int
    trl: bool = False
    steps: int = STEPS
    answer: int | None = None
    shape: Mapping[str, Any] = MappingProxyType({})
    precision: str = "bf16"


# Four times the positions that the model has by itself. In fp32, because attention in bf16 takes ten times as long on
# a CPU without bf16 instructions; few tokens in the loss, because scoring all 32,768 takes longer than a layer.
YARN = {
    "max_position_embeddings": 8192,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


CASES = {
    "sft_lora": Case("sft", LORA, 2, 1024),
    "sft_qlora": Case("sft", QLORA, 2, 1024),
    "sft_full": Case("sft", {}, 2, 1024),
    "sft_lora_32k": Case("sft", LORA, 1, 32_768, steps=1, answer=1024, shape=YARN, precision="fp32"),
    "dpo_lora": Case("dpo", LORA, 2, 512),
    "dpo_qlora": Case("dpo", QLORA, 2, 512),
    "grpo_lora": Case("grpo", LORA, 4, 128),
    "grpo_qlora": Case("grpo", QLORA, 4, 128),
    "evaluate": Case("evaluate", {}, 16, 128),
    "trl_sft_lora": Case("sft", LORA, 2, 1024, trl=True),
    "trl_sft_full": Case("sft", {}, 2, 1024, trl=True),
    "trl_dpo_lora": Case("dpo", LORA, 2, 512, trl=True),
}
LONG = ("sft_lora_32k",)  # hours with all layers: ask for it by name, with --layers 1
CHECKPOINTING = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default but {', '.join(LONG)}"
    )
    parser.add_argument("--home", type=Path, default=Path("build/real_shape"))
    parser.add_argument("--out", type=Path, help="file of JSON lines that results are added to")
    parser.add_argument("--limit-gib", type=float, default=12.0)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument(
        "--fp32-products",
        action="store_true",
        help="multiply bf16 matrices in blocks of fp32: several times as fast on CPUs without bf16 instructions",
    )
    parser.add_argument(
        "--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer are quicker, to look for what is amiss"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _run_child(json.loads(options.child))
        return
    if options.fp32_products:
        said = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(FP32_PRODUCTS), *([said] if said else [])])
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    home = options.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    results = []
    for name in options.cases or [name for name in CASES if name not in LONG]:
        case = CASES[name]
        kind = f"{options.layers}{'_yarn' if case.shape else ''}{'' if case.precision == 'bf16' else '_fp32'}"
        shape = SHAPE | case.shape | {"num_hidden_layers": options.layers, "dtype": DTYPES[case.precision]}
        model = build_model(home / f"model_{kind}", options.tokenizer, shape)
        results.append(measure_case(name, home, model))
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
        print(json.dumps(results[-1]), flush=True)
    print(f"\n{'case':14} {'peak GiB':>9} {'of imports':>11} {'estimate':>9} {'seconds':>8}")
    for result in results:
        figures = [
            f"{result[key]:.2f}" if result[key] is not None else "-"
            for key in ("peak_gib", "baseline_gib", "estimate_gib")
        ]
        print(
            f"{result['case']:14} {figures[0]:>9} {figures[1]:>11} {figures[2]:>9} {result['seconds']:8.0f} "
            f"{result['error'] or ''}"
        )
    sys.exit(any(result["error"] or result["peak_gib"] > options.limit_gib for result in results))


# --- the model and the rows


def build_model(folder: Path, tokenizer: Path, shape: dict[str, Any]) -> Path:
    """Builds the model once, in a process of its own."""
    if not (folder / "model.safetensors").exists():
        _start_child({"do": "build", "folder": str(folder), "tokenizer": str(tokenizer), "shape": shape}, None).wait()
    if not (folder / "model.safetensors").exists():
        raise SystemExit("the model could not be built")
    return folder


def _write_model(folder: Path, tokenizer: Path, shape: dict[str, Any]) -> None:
    """Writes a folder in Hugging Face form: weights as transformers draws them, with a fixed seed."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(**shape)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, shape["dtype"]))
    model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(previous)
    folder.mkdir(parents=True, exist_ok=True)
    for path in tokenizer.glob("*"):
        shutil.copyfile(path, folder / path.name)
    model.save_pretrained(folder / "partial", max_shard_size="20GB")
    for path in (folder / "partial").glob("*"):
        path.rename(folder / path.name)


def write_rows(case: Case, model: Path | None, path: Path) -> None:
    """Writes rows of about the case's tokens, of words that are a token each; few words for the embedded model."""
    rng = random.Random(0)
    tokens = case.tokens if model else 48
    n_rows = case.rows * (1 if case.kind in ("evaluate", "grpo") else case.steps + 1)

    def say(n: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(n))

    rows: list[dict[str, Any]] = []
    for number in range(n_rows):
        if case.kind == "sft":
            n_asked = tokens - 16 - case.answer if case.answer and model else 16
            asked, answered = say(n_asked), say(tokens - 16 - n_asked)
            rows.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]})
        elif case.kind == "dpo":
            prompt, n = say(max(4, tokens // 4 - 16)), tokens - tokens // 4 - 8
            rows.append({"prompt": prompt, "chosen": say(n), "rejected": say(n)})
        else:
            rows.append({"question": f"{say(tokens - 24)} {number}?", "answer": f"#### {number}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WORDS = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city name team minute idea body back parent face others level office
door health person art war history party result change morning reason research girl guy moment air teacher
force education
""".split()


def build_recipe(case: Case, model: Path | None, rows: Path) -> dict[str, Any]:
    """Builds the case's recipe: rows from a file, and the stage. Without a model it is the embedded one's."""
    formats = {"sft": ("messages", "chat"), "dpo": ("preference", "pair")}
    format_name, kind = formats.get(case.kind, ("gsm8k", "problem"))
    builder = {"kind": "local_file", "path": str(rows), "format": format_name, "rows": kind}
    if case.kind in ("sft", "dpo"):
        builder["mode"] = "no_think"
    stage: dict[str, Any] = {
        "name": "measured",
        "kind": case.kind,
        "from_model": "base",
        "from_data": ["rows"],
        **case.settings,
    }
    trained = {"learning_rate": 1e-4, "precision": case.precision if model else "fp32"}
    sampling = {"max_tokens": 128 if model else 8, "temperature": 1.0}
    if not model and "lora" in stage:
        stage["lora"] = LORA["lora"]
    if case.kind in ("sft", "dpo"):
        # As many rows as steps take: all are of one length, just below the limit, so that a step is one pass.
        stage |= {**trained, "max_tokens": case.tokens, "batch": case.rows, "epochs": case.steps / (case.steps + 1)}
    if case.kind == "dpo":
        stage |= {"beta": 0.1}
    if case.kind == "grpo":
        stage |= {**trained, "steps": case.steps, "prompts_per_step": 4, "completions_per_prompt": 4}
        stage |= {
            "sampling": sampling,
            "rewards": [{"kind": "random"}],
            "kl": {"coefficient": 0.01, "apply_to": "loss"},
        }
    if case.kind == "evaluate":
        stage |= {"completions_per_prompt": 1, "sampling": sampling}
    return {
        "name": "real_shape",
        "models": {"base": {"path": str(model)} if model else {"shipped": "tiny_base"}},
        "runtime": {
            "device": "cpu",
            "micro_batch": case.rows,
            "checkpoint_every": 1,
            "gradient_checkpointing": CHECKPOINTING,
            "generation_batch": 16,
        },
        "stages": [{"name": "rows", "kind": "build_data", "builder": builder}, stage],
    }


# --- measuring


class Measured(NamedTuple):
    """The largest anonymous memory of a process and its descendants in bytes, and how the process ended."""

    peak: int
    code: int


def measure_case(name: str, home: Path, model: Path) -> dict[str, Any]:
    """Measures a case and its baseline, and returns the figures."""
    case, began = CASES[name], time.monotonic()
    baseline, error = _measure_baseline(case, home)
    peak, failed = (0, error) if error else _measure(case, model, home / name)
    return {
        "case": name,
        "peak_gib": round(max(0, peak - baseline) / GIB, 3),
        "baseline_gib": round(baseline / GIB, 3),
        "estimate_gib": None if case.trl else estimate(case, model),
        "checkpointing": CHECKPOINTING,
        "steps": TRL_STEPS if case.trl else case.steps,
        "seconds": round(time.monotonic() - began, 1),
        "error": failed,
    }


def _measure_baseline(case: Case, home: Path) -> tuple[int, str | None]:
    """Measures the recipe of a case with the embedded model, once for each kind of stage."""
    name = f"{'trl_' * case.trl}{case.kind}_{'lora' if case.settings else 'full'}_baseline"
    known = home / f"{name}.json"
    if known.exists():
        return json.loads(known.read_text()), None
    baseline, error = _measure(case, None, home / name)
    if not error:
        known.write_text(json.dumps(baseline))
    return baseline, error


def _measure(case: Case, model: Path | None, home: Path) -> tuple[int, str | None]:
    """Runs a case, killed after its first checkpoint and run again; returns the peak, and what went wrong."""
    subprocess.run(["rm", "-rf", str(home)], check=True)
    home.mkdir(parents=True)
    said = home / "said.txt"
    if case.trl:
        done = watch(
            _start_child(
                {
                    "do": "trl",
                    "case": next(n for n, one in CASES.items() if one == case),
                    "model": model and str(model),
                },
                said,
            )
        )
        return done.peak, _read_error(done.code, said)
    write_rows(case, model, home / "rows.jsonl")
    (home / "recipe.yaml").write_text(yaml.safe_dump(build_recipe(case, model, home / "rows.jsonl")))
    line = [sys.executable, "-m", "qwen_align.cli", "run", str(home / "recipe.yaml"), "--home", str(home)]
    checkpoints = home / "runs" / "real_shape" / "stages" / "measured" / "checkpoints"
    peaks = []
    if case.kind != "evaluate" and case.steps > 1:
        done = watch(_start(line, said), until=lambda: any(checkpoints.glob("checkpoint-*")))
        if done.code >= 0:
            return done.peak, _read_error(done.code or 1, said)
        peaks.append(done.peak)
    done = watch(_start(line, said))
    return max([*peaks, done.peak]), _read_error(done.code, said)


def _read_error(code: int, said: Path) -> str | None:
    return None if code == 0 else f"ended with {code}: {said.read_text()[-600:]}"


def _start(line: list[str], said: Path | None) -> "subprocess.Popen[bytes]":
    with said.open("ab") if said else open(os.devnull, "wb") as log:
        return subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)


def _start_child(task: dict[str, Any], said: Path | None) -> "subprocess.Popen[bytes]":
    return _start([sys.executable, __file__, "--child", json.dumps(task)], said)


def watch(process: "subprocess.Popen[bytes]", until: Callable[[], bool] | None = None) -> Measured:
    """Watches a process to its end, or kills it and its descendants when `until` comes true."""
    peak = 0
    while process.poll() is None:
        pids = list_descendants(process.pid)
        peak = max(peak, sum(map(read_anonymous_bytes, pids)))
        if until is not None and until():
            for pid in reversed(pids):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            return Measured(peak, process.wait())
        time.sleep(0.05)
    return Measured(peak, process.returncode)


def list_descendants(pid: int) -> list[int]:
    """Lists a process and all that it and its children started."""
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def read_anonymous_bytes(pid: int) -> int:
    """Reads the anonymous resident memory of a process; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, found, rest = status.partition("RssAnon:")
    return int(rest.split()[0]) * 1024 if found else 0


def estimate(case: Case, model: Path) -> float | None:
    """Returns what the estimator says of the case's stage on a CPU, in GiB; None where there is no estimator."""
    try:
        from pydantic import TypeAdapter

        from qwen_align.align.estimation.stage_estimate import estimate_stage
        from qwen_align.align.settings.recipe import StageSpec
        from qwen_align.align.settings.runtime import Runtime
    except ImportError:
        return None
    recipe = build_recipe(case, model, Path("rows.jsonl"))
    settings = TypeAdapter(StageSpec).validate_python(recipe["stages"][1])
    config = json.loads((model / "config.json").read_text())
    found = estimate_stage(settings, Runtime(**recipe["runtime"]), config, prompt_tokens=case.tokens, is_on_gpu=False)
    return None if found is None else round(found.peak.total / GIB, 3)


# --- plain TRL


def _run_child(task: dict[str, Any]) -> None:
    if task["do"] == "build":
        _write_model(Path(task["folder"]), Path(task["tokenizer"]), task["shape"])
    else:
        _train_with_trl(CASES[task["case"]], task["model"])


def _train_with_trl(case: Case, model: str | None) -> None:
    """Trains with TRL's own trainer and defaults, but for the weights' dtype, micro-batch and checkpointing."""
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    folder = model or str(Path(__file__).resolve().parents[2] / "recipes" / "tiny_base")
    # The dtypes of the product: a frozen base as its files have it, trained weights in fp32.
    dtype = torch.bfloat16 if case.settings else torch.float32
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rng, tokens, limit = random.Random(0), case.tokens if model else 48, 150_000 if model else 256

    def draw(n: int) -> list[int]:
        return [rng.randrange(limit) for _ in range(n)]

    arguments: dict[str, Any] = {
        "output_dir": "/tmp/real_shape_trl",
        "per_device_train_batch_size": case.rows,
        "max_steps": TRL_STEPS,
        "max_length": None,
        "gradient_checkpointing": CHECKPOINTING,
        "bf16": bool(model),
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
    }
    n = case.rows * TRL_STEPS
    adapters = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    peft = LoraConfig(**adapters) if case.settings else None
    if case.kind == "sft":
        ids = [draw(tokens) for _ in range(n)]
        rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": [[-100] * 24 + row[24:] for row in ids]})
        SFTTrainer(
            policy, SFTConfig(**arguments), train_dataset=rows, processing_class=tokenizer, peft_config=peft
        ).train()
        return

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # of token ids already

    sides = [
        {"prompt_ids": draw(tokens // 4), "chosen_ids": draw(tokens * 3 // 4), "rejected_ids": draw(tokens * 3 // 4)}
        for _ in range(n)
    ]
    rows = datasets.Dataset.from_list(sides)
    Trainer(
        policy, args=DPOConfig(**arguments), train_dataset=rows, processing_class=tokenizer, peft_config=peft
    ).train()


if __name__ == "__main__":
    main()

"""CPU seconds of whole GRPO steps, ours beside TRL's GRPOTrainer out of the box, in one run; and where ours go.

Both train the same model on the same problems: 32 prompts x 8 completions, one update a step, the same learning rate,
the same exact reward (boxed answer against gold). TRL generates with transformers and judges on its main thread, as it
comes; its batches are of 8 rows, its default. The embedded model is first taught the format (SFT), so that rewards
differ and completions end. On a random model of 48 million parameters only our own step is taken apart.

    python tests/bench/grpo_step.py [--steps 4] [--threads 1]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PROMPTS, SAMPLES, MAX_TOKENS = 32, 8, 96
LEARNING_RATE = 3e-4
SFT = """
name: taught
models: {base: {shipped: tiny_base}}
runtime: {device: cpu, threads: 1}
anchors: {rate: &rate {learning_rate: 2e-3}}
stages:
  - {name: traces, kind: build_data, builder: {kind: arithmetic, rows: trace, n: 400, steps: [1, 2, 3, 4]}}
  - {name: sft, kind: sft, from_model: base, from_data: [traces], max_tokens: 256, batch: 8, epochs: 3, <<: *rate}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="measured, after one that only warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=["ours", "theirs", "parts"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        torch.set_num_threads(options.threads)
        print(json.dumps(SIDES[options.side](options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = Path(scratch)
        recipe = options.folder / "sft.yaml"
        recipe.write_text(SFT)
        run = [sys.executable, "-m", "qwen_align.cli", "run", str(recipe), "--home", scratch]
        subprocess.run(run, check=True, capture_output=True)
        theirs, ours, parts = (child(options, side) for side in ("theirs", "ours", "parts"))
        print(
            f"embedded model: TRL {theirs['seconds']:.2f}, ours {ours['seconds']:.2f} CPU seconds a step, "
            f"ratio {theirs['seconds'] / ours['seconds']:.2f}; completions of {theirs['tokens']:.0f} and "
            f"{ours['tokens']:.0f} tokens"
        )
        print(
            f"48 million parameters: {parts['step']:.1f} s a step, {parts['outside_share']:.1%} of it outside "
            "sampling, forward and backward"
        )


def child(options: argparse.Namespace, side: str) -> dict[str, float]:
    line = [sys.executable, __file__, "--side", side, "--folder", str(options.folder)]
    line += ["--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def taught(options: argparse.Namespace) -> Path:
    (folder,) = options.folder.glob("store/sft-*/model")
    return folder


def problems(n: int) -> list[Any]:
    from qwen_align.data_builders.arithmetic import Arithmetic

    return list(Arithmetic(rows="problem", n=n, steps=[2, 3, 4], split="train").generate(5))


class Clock:
    """CPU seconds at the ends of steps, and how many of them had been spent inside what is timed apart."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.inside = 0.0
        self.inside_at: list[float] = []

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class AtStepEnd(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.ends.append(time.process_time())
                clock.inside_at.append(clock.inside)

        return AtStepEnd()

    @property
    def seconds(self) -> float:
        """A step; the first one only warms up."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)

    @property
    def outside_share(self) -> float:
        return 1 - (self.inside_at[-1] - self.inside_at[0]) / (self.ends[-1] - self.ends[0])

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            started = time.process_time()
            found = function(*arguments, **settings)
            self.inside += time.process_time() - started
            return found

        return call


def with_trl(options: argparse.Namespace) -> dict[str, float]:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from qwen_align.reward import MathAnswer

    judge, lengths, clock = MathAnswer(box="required"), list[int](), Clock()

    def reward(completions: Any, completion_ids: Any, gold: Any, **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        said = zip(completions, gold, strict=True)
        return [float(judge.judge(one[0]["content"], right).value or 0.0) for one, right in said]

    rows = problems(PROMPTS * (options.steps + 1))
    prompts = [
        {"prompt": [m.model_dump(include={"role", "content"}) for m in row.messages], "gold": row.gold} for row in rows
    ]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(taught(options)),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(options.folder / "trl"),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=PROMPTS * SAMPLES // 8,
            num_generations=SAMPLES,
            max_completion_length=MAX_TOKENS,
            learning_rate=LEARNING_RATE,
            max_steps=options.steps + 1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(taught(options)),
        callbacks=[clock.callback()],
    )
    trainer.train()
    return {"seconds": clock.seconds, "tokens": sum(lengths) / len(lengths)}


def trained(
    options: argparse.Namespace,
    clock: Clock,
    model: Path,
    *,
    steps: int,
    max_tokens: int,
    prompts: int,
    reward: dict[str, str],
) -> Path:
    """Our own stage in this process, with a clock at the end of every step; returns the stage's folder."""
    from qwen_align.align.context import Context
    from qwen_align.align.rl import trainer
    from qwen_align.align.rl.algorithm import build_grpo
    from qwen_align.align.rows import to_json_line
    from qwen_align.align.settings.grpo import Grpo
    from qwen_align.align.settings.runtime import Runtime
    from qwen_align.align.stages import online_rl

    data, out = options.folder / "data", options.folder / f"ours-{max_tokens}"
    for folder in (data, out):
        folder.mkdir(exist_ok=True)
    (data / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in problems(prompts * steps)))
    spec = Grpo.model_validate(
        {
            "kind": "grpo",
            "name": "grpo",
            "from_model": "base",
            "from_data": ["data"],
            "rewards": [reward],
            "steps": steps,
            "prompts_per_step": prompts,
            "completions_per_prompt": SAMPLES,
            "sampling": {"temperature": 1.0, "max_tokens": max_tokens},
            "learning_rate": LEARNING_RATE,
        }
    )
    plain = trainer.OnlineTrainer.__init__

    def with_clock(self: Any, *arguments: Any, callbacks: Any = (), **settings: Any) -> None:
        plain(self, *arguments, callbacks=[*callbacks, clock.callback()], **settings)

    trainer.OnlineTrainer.__init__ = with_clock  # type: ignore[method-assign]
    runtime = Runtime(device="cpu", checkpoint_every=10_000, micro_batch=8)
    online_rl.run(build_grpo(spec), {"base": model, "data": data}, out, Context(out, 0, runtime))
    return out


def with_ours(options: argparse.Namespace) -> dict[str, float]:
    clock, steps = Clock(), options.steps + 1
    reward = {"kind": "math_answer", "box": "required"}
    out = trained(options, clock, taught(options), steps=steps, max_tokens=MAX_TOKENS, prompts=PROMPTS, reward=reward)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": clock.seconds, "tokens": sum(one["completions/mean_tokens"] for one in lines) / len(lines)}


def parts(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step that are neither in the engine nor in forward and backward passes."""
    from accelerate import Accelerator
    from rollout import make_model

    from qwen_align.align.generation.local import LocalEngine
    from qwen_align.align.rl.actor import Actor

    clock, generate = Clock(), LocalEngine.generate

    def timed_generate(self: Any, requests: Any) -> Any:
        made = generate(self, requests)
        after_one = clock.timed(lambda: next(made, None))
        while (one := after_one()) is not None:
            yield one

    LocalEngine.generate = timed_generate  # type: ignore[method-assign]
    Actor.forward = clock.timed(Actor.forward)  # type: ignore[method-assign]
    Accelerator.backward = clock.timed(Accelerator.backward)  # type: ignore[method-assign]
    folder = options.folder / "random"
    make_model("50m").save_pretrained(folder)
    for path in taught(options).iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
    chance = {"kind": "random"}  # so that there is something to train
    trained(options, clock, folder, steps=3, max_tokens=64, prompts=4, reward=chance)
    return {"step": clock.seconds, "outside_share": clock.outside_share}


SIDES: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "ours": with_ours,
    "theirs": with_trl,
    "parts": parts,
}
if __name__ == "__main__":
    main()

"""A small ladder of every kind of stage, killed again and again, against one that nobody touched.

Each kill is SIGKILL to the run's process group, some at a moment of a stage drawn by the seed, so that they are spread
evenly over the ladder's time, some while a checkpoint is written, some while a stage ends. After the kills of a ladder
it runs to its end, and everything its stages made has to have the bytes of the uninterrupted one; only the times in
manifests and metrics may differ. Ends with 1 where something differs or hangs.

    python tests/evidence/kills.py [--kills 50] [--a-ladder 10] [--seed 0] [--home FOLDER]
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

HANG_S = 1800.0  # without an end: the ladder takes a minute or two
SAMPLING = {"temperature": 1.0, "max_tokens": 96}
REWARDS = [{"kind": "math_answer"}, {"kind": "random"}]  # the coin, so that there are always pairs and signals
TUNED = {"kind": "sft", "max_tokens": 256, "batch": 8, "learning_rate": 2e-3}
PAIRED = {"from_data": ["pairs"], "max_tokens": 256, "batch": 4, "epochs": 1, "learning_rate": 1e-4}
ONLINE = {
    "from_data": ["problems"],
    "rewards": REWARDS,
    "steps": 6,
    "prompts_per_step": 4,
    "completions_per_prompt": 4,
    "sampling": SAMPLING,
    "learning_rate": 1e-4,
}
DRAWN = {"completions_per_prompt": 4, "sampling": SAMPLING, "rewards": REWARDS}


def data(name: str, **builder: Any) -> dict[str, Any]:
    return {"name": name, "kind": "build_data", "builder": builder}


RECIPE = {
    "name": "kills",
    "models": {"base": {"shipped": "tiny_base"}},
    "runtime": {"device": "cpu", "threads": 1, "checkpoint_every": 2, "generation_batch": 8},
    "stages": [
        data("traces", kind="arithmetic", rows="trace", n=240, steps=[1, 2]),
        data("direct", kind="arithmetic", rows="direct", n=32, steps=[1]),
        {**TUNED, "name": "sft", "from_model": "base", "from_data": ["traces", "direct"], "epochs": 2},
        data("problems", kind="arithmetic", rows="problem", n=24, steps=[1, 2]),
        {
            **DRAWN,
            "name": "rollouts",
            "kind": "rollout",
            "from_model": "sft",
            "from_data": "problems",
            "thinking_switch": {"method": "kwarg", "mode": "no_think"},  # no pair's chosen side may lack its thinking
        },
        data("pairs", kind="pairs", from_data="rollouts", reward="random", per_prompt=2),
        {**PAIRED, "name": "dpo", "kind": "dpo", "from_model": "sft", "beta": 0.1},
        {**PAIRED, "name": "scorer", "kind": "reward_model", "from_model": "sft"},
        {**ONLINE, "name": "grpo", "kind": "grpo", "from_model": "dpo", "runtime": {"processes": 2}},
        {**ONLINE, "name": "ppo", "kind": "ppo", "from_model": "dpo", "critic": {"learning_rate": 1e-3}},
        {**DRAWN, "name": "own", "kind": "rollout", "from_model": "grpo", "from_data": "problems"},
        data("mix", kind="think_mix", from_rollout="own", from_chats="direct", reward="random"),
        {**TUNED, "name": "fusion", "from_model": "grpo", "from_data": ["mix"], "epochs": 2},
        {
            **DRAWN,
            "name": "evaluated",
            "kind": "evaluate",
            "from_model": "fusion",
            "from_data": ["problems"],
            "thinking_switches": [{"method": "default"}, {"method": "kwarg", "mode": "no_think"}],
        },
    ],
}
NAMES = [str(stage["name"]) for stage in RECIPE["stages"]]  # type: ignore[attr-defined]
TRAINED = ["sft", "dpo", "scorer", "grpo", "ppo", "fusion"]
WAYS = ("checkpoints/checkpoint-*", "checkpoints/partial/*", "parts/*.jsonl", "parts/*/*.jsonl")


class Aim(NamedTuple):
    """When to kill: so many seconds into a stage, or after its checkpoint or its product has begun to be written."""

    stage: str
    what: str  # time, checkpoint, end
    delay_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--a-ladder", type=int, default=10, help="kills before a ladder may end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="where the runs stay; None: deleted at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(compared(options, options.home or Path(scratch)))


def compared(options: argparse.Namespace, home: Path) -> int:
    """1 if a killed ladder ended otherwise than the uninterrupted one, else 0."""
    home.mkdir(parents=True, exist_ok=True)
    recipe = home / "kills.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    began = time.monotonic()
    whole = Ladder(recipe, home / "whole")
    whole.end()
    print(f"uninterrupted: {time.monotonic() - began:.0f} s, {len(made(whole.home))} files of {len(NAMES)} stages")
    rng, hits, wrong, number = random.Random(options.seed), Counter[str](), 0, 0
    while hits.total() < options.kills:
        ladder = Ladder(recipe, home / str(number))
        for aim in aims(min(options.a_ladder, options.kills - hits.total()), whole.seconds(), rng):
            if said := ladder.kill(aim):
                hits[aim.what] += 1
                print(f"  {number}: {aim.stage}, {aim.what} + {aim.delay_s:.2f} s: {said}", flush=True)
        ladder.end()
        differ = sorted(differences(made(whole.home), made(ladder.home)))
        wrong += bool(differ)
        print(f"ladder {number}: {', '.join(differ) or 'the same bytes'}", flush=True)
        number += 1
    kinds = ", ".join(f"{n} by {what}" for what, n in hits.items())
    print(f"{hits.total()} kills ({kinds}) in {number} ladders, {wrong} of which differ; ", end="")
    print(f"{time.monotonic() - began:.0f} s, seed {options.seed}")
    return int(wrong > 0)


def aims(n: int, seconds: dict[str, float], rng: random.Random) -> list[Aim]:
    """Six in ten at even moments of the ladder's time, three at a checkpoint, one at an end, in the ladder's order."""
    found = []
    n_ends, n_checkpoints = n // 10, 3 * n // 10
    n_times = n - n_ends - n_checkpoints
    whole = sum(seconds.values())
    for place in range(n_times):
        moment = whole * (place + rng.random()) / n_times
        for name in NAMES:
            if moment < seconds[name]:
                break
            moment -= seconds[name]
        found.append(Aim(name, "time", moment))
    found += [Aim(rng.choice(TRAINED), "checkpoint", rng.choice([0.0, 0.005, 0.02])) for _ in range(n_checkpoints)]
    found += [Aim(rng.choice(NAMES), "end", rng.choice([0.0, 0.01, 0.05])) for _ in range(n_ends)]
    return sorted(found, key=lambda aim: (NAMES.index(aim.stage), aim.what == "end", aim.delay_s))


class Ladder:
    """Runs of one recipe in one home."""

    def __init__(self, recipe: Path, home: Path) -> None:
        self.home = home
        self._line = [sys.executable, "-m", "qwen_align.cli", "run", str(recipe), "--home", str(home)]
        home.mkdir()

    def folder(self, stage: str) -> Path:
        return self.home / "runs" / "kills" / "stages" / stage

    def is_done(self, stage: str) -> bool:
        return (self.folder(stage) / "manifest.json").exists()

    def seconds(self) -> dict[str, float]:
        """What each stage's process took; a bit more for those with a process of their own, which imports."""
        return {
            name: said["seconds"] + (said["import_seconds"] if said["kind"] == "build_data" else 0.0)
            for name in NAMES
            for said in [json.loads((self.folder(name) / "manifest.json").read_text())]
        }

    def _start(self) -> "subprocess.Popen[bytes]":
        log = (self.home / "said.txt").open("ab")
        return subprocess.Popen(self._line, stdout=log, stderr=log, start_new_session=True)

    def end(self) -> None:
        """Runs what is left; raises when it fails or hangs."""
        code = self._start().wait(timeout=HANG_S)
        if code != 0:
            raise SystemExit(f"ended with {code}:\n{(self.home / 'said.txt').read_text()[-3000:]}")

    def kill(self, aim: Aim) -> str | None:
        """Runs until the aim is there, and kills; what was going on, or None if the ladder was past it."""
        if self.is_done(aim.stage):
            return None
        folder = self.folder(aim.stage)
        (folder / "log.txt").unlink(missing_ok=True)  # its coming back is the stage's process
        started = time.time()
        process = self._start()
        self._wait(lambda: (folder / "log.txt").exists(), process, aim)
        if aim.what == "checkpoint":
            self._wait(lambda: is_newer(folder / "checkpoints" / "partial", started), process, aim)
        elif aim.what == "end":
            products = [folder / name for name in ("model", "rows.jsonl", "completions.jsonl")]
            self._wait(lambda: any(is_newer(one, started) for one in products), process, aim)
        time.sleep(aim.delay_s)
        if process.poll() is not None:
            return None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        going_on = next((name for name in NAMES if not self.is_done(name)), "the end")
        folder = self.folder(going_on)
        left = [str(path.relative_to(folder)) for way in WAYS for path in folder.glob(way)]
        return f"killed in {going_on}, which had {', '.join(sorted(left)) or 'nothing'}"

    def _wait(self, sign: Callable[[], bool], process: "subprocess.Popen[bytes]", aim: Aim) -> None:
        """Until the sign comes or the stage is over; raises when the run fails or hangs."""
        deadline = time.monotonic() + HANG_S
        while not sign() and not self.is_done(aim.stage):
            if process.poll() or time.monotonic() > deadline:
                what = "hangs" if process.poll() is None else "failed"
                raise SystemExit(f"{what} before {aim}:\n{(self.home / 'said.txt').read_text()[-3000:]}")
            time.sleep(0.001)


def is_newer(path: Path, when: float) -> bool:
    """Whether it is there, and it or something in it is of after `when` (Unix time)."""
    try:
        return any(one.stat().st_mtime > when for one in (path, *path.glob("*")))
    except FileNotFoundError:
        return False


def made(home: Path) -> dict[str, str]:
    """Digests of all that stages left, by place, without times: what manifests name, their summaries, and the logs."""
    found = {}
    for manifest in home.glob("store/*/manifest.json"):
        folder, said = manifest.parent, json.loads(manifest.read_text())
        for name in said["outputs"]:
            found[f"{folder.name}/{name}"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        found[f"{folder.name}/summary"] = json.dumps(said["summary"], sort_keys=True)
        for name in ("metrics.jsonl", "notes.jsonl"):
            if (folder / name).exists():
                lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
                measured = ("time/", "speed/", "memory/")
                kept = [{key: value for key, value in line.items() if not key.startswith(measured)} for line in lines]
                found[f"{folder.name}/{name}"] = json.dumps(kept, sort_keys=True)
        known = {"manifest.json", "stage.json", "log.txt", "lease", "metrics.jsonl", "notes.jsonl"}
        tops = {Path(name).parts[0] for name in said["outputs"]}
        left = {path.name for path in folder.iterdir()} - known - tops
        found[f"{folder.name}/left over"] = ", ".join(sorted(left))
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> Iterator[str]:
    for name in {*one, *other}:
        if one.get(name) != other.get(name):
            yield name


if __name__ == "__main__":
    main()

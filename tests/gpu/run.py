"""Runs each path of docs/hardware.md on GPUs, offline, as root or not, and prints its lines of the table.

    python tests/gpu/run.py                        one card, below 10 minutes
    python tests/gpu/run.py --gpus 8               the cases of several cards of one machine
    python tests/gpu/run.py --device cpu --tiny    a dry run of this script: the embedded model on a CPU

A stage of a few steps for each path, of a model of Qwen3-0.6B's shape with random weights, made here. Losses are
compared with those of the same steps on the CPU in fp32, the peak of memory with the estimate, and a stage that has too
little memory has to name the phase in which it ran out.

It installs nothing. The Python that it is started with has to have this package and a torch that sees the GPUs. Where
there is a network:

    python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[qlora,deepspeed]'

(PyPI's torch for Linux is the build for CUDA.) For a machine without one, on another of the same system and Python:

    pip download -d wheels -c constraints.txt '.[qlora,deepspeed]' setuptools wheel
    pip install --no-index --find-links wheels -c constraints.txt --no-build-isolation -e '.[qlora,deepspeed]'   # there

What is not there (bitsandbytes, deepspeed, flash_attn, vllm) is said, and the cases that need it are left out. Exit
codes: 0 all that could run is well, 1 something is not, 2 the environment is not as it has to be.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TINY_BASE = ROOT / "recipes" / "tiny_base"
GIB = 1 << 30
MINUTES = {1: 10.0}  # of one card; several have more cases, and processes to start
MINUTES_OF_SEVERAL = 40.0
ABOVE_ESTIMATE = 1.05  # of a peak, which torch's own count of tensors gives; the estimate is above that by its overhead
N_PHRASES, N_PHRASES_TINY = 24, 4  # of the longest row


class Outcome(NamedTuple):
    """What came of a case: passed, failed, or not run, and the figures or the reason."""

    state: str
    said: str


class Machine(NamedTuple):
    """What torch says of this machine."""

    torch: str
    gpus: list[str]


def main() -> int:
    """Runs the cases and prints what came of them. Returns the exit code."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was started is ended too
    options = parse_options()
    home = (options.home or Path(tempfile.mkdtemp(prefix="qwen-align-gpu-"))).resolve()
    home.mkdir(parents=True, exist_ok=True)
    environment = build_environment(home)
    machine = examine_machine(environment)
    if obstacle := find_obstacle(machine, options):
        print(f"{obstacle}\n\n{__doc__}", file=sys.stderr)
        return 2
    from tests.gpu import cases

    all_cases = cases.list_cases_of_several_gpus(options.gpus) if options.gpus > 1 else cases.list_cases_of_one_gpu()
    if options.gpus > 1:  # engines on GPUs of their own, and tensor parallelism
        all_cases += [case for case in cases.list_cases_of_one_gpu() if 1 < case.gpus <= options.gpus]
    if options.tiny:
        all_cases = [cases.shrink(case) for case in all_cases]
    unknown = [name for name in options.only if name not in {case.name for case in all_cases}]
    if unknown:
        print(f"--only {unknown[0]}: there are {', '.join(case.name for case in all_cases)}", file=sys.stderr)
        return 2
    outcomes: dict[str, Outcome] = {}
    able = []
    for case in all_cases:
        if options.only and case.name not in options.only:
            continue
        if reason := find_reason_against(case, options):
            outcomes[case.name] = Outcome("not run", reason)
        else:
            able.append(case)
    print(f"{', '.join(machine.gpus) or 'no GPU'}; torch {machine.torch}; files in {home}", flush=True)
    outcomes |= run_all(able, home, options, environment)
    print_outcomes(all_cases, outcomes, options, machine)
    if options.home is None:
        shutil.rmtree(home, ignore_errors=True)
    return int(any(outcome.state == "failed" for outcome in outcomes.values()))


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="cards (default 1)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run, with --tiny")
    parser.add_argument("--tiny", action="store_true", help="the embedded model in place of Qwen3-0.6B's shape")
    parser.add_argument("--minutes", type=float, help="no case begins later (default 10, 40 with several cards)")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="only these cases")
    parser.add_argument("--home", type=Path, help="folder for models and results, kept (default: a temporary one)")
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu: takes --tiny; of a CPU at a real size see tests/evidence/real_shape.py")
    if options.gpus < 1:
        parser.error("--gpus: at least 1")
    options.minutes = options.minutes or MINUTES.get(options.gpus, MINUTES_OF_SEVERAL)
    return options


# --- the environment


def build_environment(home: Path) -> dict[str, str]:
    """Returns the variables of all processes: no network, caches in the home, and this tree as the package."""
    packages = home / "import"
    packages.mkdir(exist_ok=True)
    link = packages / "qwen_align"  # wherever the tree is, and whatever its folder is called
    if not link.exists():
        link.symlink_to(ROOT)
    paths = [str(packages), str(ROOT)]
    sys.path[:0] = paths
    caches = home / "caches"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(caches / "huggingface"),
        "TRITON_CACHE_DIR": str(caches / "triton"),  # the home of a user without one cannot be written
        "XDG_CACHE_HOME": str(caches),
        "TOKENIZERS_PARALLELISM": "false",
    }


def examine_machine(environment: Mapping[str, str]) -> Machine | str:
    """Asks torch for GPUs in a process of its own. Returns its words where it cannot be imported."""
    script = (
        "import json, torch, qwen_align.cli\n"
        "names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]\n"
        "print(json.dumps([torch.__version__, names]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
    version, names = json.loads(done.stdout.splitlines()[-1])
    return Machine(version, names)


def find_obstacle(machine: Machine | str, options: argparse.Namespace) -> str | None:
    """Says why nothing can be run here. Returns None where something can."""
    if isinstance(machine, str):
        return f"{sys.executable} cannot import torch or this package: {machine}"
    if options.device == "cuda" and not machine.gpus:
        return f"torch {machine.torch} sees no GPU: a build for CPUs, or no driver"
    if options.device == "cuda" and len(machine.gpus) < options.gpus:
        return f"--gpus {options.gpus}: torch sees {len(machine.gpus)}"
    return None


def find_reason_against(case: Any, options: argparse.Namespace) -> str | None:
    """Says why a case cannot be run here. Returns None where it can."""
    if missing := [name for name in case.packages if importlib.util.find_spec(name) is None]:
        return f"{missing[0]} is not installed"
    if case.gpus > options.gpus:
        return f"needs {case.gpus} GPUs"
    if options.device == "cpu":
        if case.fails_in or "paged" in str(case.stage.get("optimizer")) or case.packages == ("flash_attn",):
            return "needs a GPU"
        if case.runtime.get("strategy") == "fsdp2":
            return "FSDP2 needs GPUs"
    return None


# --- running


def run_all(
    able: Sequence[Any], home: Path, options: argparse.Namespace, environment: Mapping[str, str]
) -> dict[str, Outcome]:
    """Makes the model, runs the cases and the same steps on the CPU, and judges them."""
    from tests.gpu import cases

    deadline = time.monotonic() + 60 * options.minutes
    model = build_model(home / "model", environment, tiny=options.tiny)
    cases.write_rows(home, n_digits=N_PHRASES_TINY if options.tiny else N_PHRASES)
    compared = [case for case in able if case.tolerance]
    outcomes: dict[str, Outcome] = {}
    plain = [case for case in able if not case.fails_in]
    with run_on_cpu(compared, model, home, environment) as cpu:
        outcomes |= run_cases(plain, Recipe(model, home / "run", options.device, environment), deadline)
        for case in (case for case in able if case.fails_in):
            outcomes[case.name] = run_without_memory(case, model, home, environment, deadline)
        while cpu.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
    for case in plain:
        if case.name not in outcomes:
            outcomes[case.name] = judge_case(case, home, options)
    return outcomes


class Recipe(NamedTuple):
    """Where cases are run: the model, the home, the device, and the variables of the processes."""

    model: Path
    home: Path
    device: str
    environment: Mapping[str, str]

    def start(self, chosen: Sequence[Any], **runtime: Any) -> "subprocess.Popen[bytes]":
        """Starts a run of cases; what it prints goes to said.txt."""
        import yaml

        from tests.gpu import cases

        self.home.mkdir(exist_ok=True)
        recipe = {
            "name": "gpu",
            "models": {"base": {"path": str(self.model)}},
            "runtime": {"device": self.device},
            "stages": [
                *cases.list_data_stages(self.home.parent),
                *(cases.build_stage(case, **runtime) for case in chosen),
            ],
        }
        (self.home / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        line = [sys.executable, "-P", "-m", "qwen_align.cli", "run", str(self.home / "recipe.yaml")]
        with (self.home / "said.txt").open("wb") as said:
            return subprocess.Popen(
                [*line, "--home", str(self.home)],
                stdout=said,
                stderr=said,
                env=dict(self.environment),
                start_new_session=True,
            )

    def is_done(self, name: str) -> bool:
        """Returns whether a case's stage is stored."""
        return (self.home / "runs" / "gpu" / "stages" / name / "manifest.json").exists()

    def read_end(self) -> str:
        """Returns the last lines that the run has printed."""
        said = (self.home / "said.txt").read_text(errors="replace")
        return " ".join(said[-800:].split())


def run_cases(chosen: Sequence[Any], recipe: Recipe, deadline: float) -> dict[str, Outcome]:
    """Runs cases as stages of one recipe, without those that have failed until none of the rest does.

    Returns what came of those that did not end well.
    """
    outcomes: dict[str, Outcome] = {}
    left = list(chosen)
    while left and any(not recipe.is_done(case.name) for case in left):
        process = recipe.start(left)
        is_late = not wait_for_end(process, deadline)
        unfinished = [case for case in left if not recipe.is_done(case.name)]
        if not unfinished:
            break
        said = recipe.read_end()
        if is_late:
            outcomes |= {case.name: Outcome("not run", "time was over before its end") for case in unfinished}
            break
        blamed = find_blamed(said, unfinished)
        if blamed is None:
            outcomes |= {case.name: Outcome("failed", said) for case in unfinished}
            break
        outcomes[blamed.name] = Outcome("failed", said)
        left = [case for case in left if case is not blamed]
    return outcomes


def find_blamed(said: str, unfinished: Sequence[Any]) -> Any:
    """Returns the case whose stage an error is of: the last that it names. None: it is of no case's stage."""
    named = re.findall(r"stage '([^']+)'", said)
    by_name = {case.name: case for case in unfinished}
    return by_name.get(named[-1]) if named else unfinished[0]


def wait_for_end(process: "subprocess.Popen[bytes]", deadline: float) -> bool:
    """Waits for a run, and ends it with all its processes at the deadline. Returns whether it ended before."""
    try:
        process.wait(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        end(process)
        return False
    except BaseException:  # Ctrl-C, SIGTERM
        end(process)
        raise
    return True


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a run, whose processes end with it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def run_on_cpu(
    compared: Sequence[Any], model: Path, home: Path, environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs cases on the CPU in fp32, beside what is done inside the `with` block."""
    from tests.gpu import cases

    plain = []
    for case in compared:
        stage = {**case.stage, "precision": "fp32"}
        for gone in ("optimizer", "tf32"):
            stage.pop(gone, None)
        plain.append(cases.Case(case.name, stage, case.lines, case.rows))
    recipe = Recipe(model, home / "cpu", "cpu", {**environment, "CUDA_VISIBLE_DEVICES": ""})
    process = recipe.start(plain) if plain else subprocess.Popen(["true"])
    try:
        yield process
    finally:
        if process.poll() is None:
            end(process)


_BALLAST = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
kept = torch.empty(max(0, free - int(float(sys.argv[1]) * 2**30)), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def run_without_memory(case: Any, model: Path, home: Path, environment: Mapping[str, str], deadline: float) -> Outcome:
    """Runs a case beside a process that holds the GPU's memory but for some GiB; it has to name the phase."""
    if time.monotonic() > deadline:
        return Outcome("not run", "time was over before it")
    line = [sys.executable, "-c", _BALLAST, str(case.free_gib)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=dict(environment), **pipes) as ballast:
        try:
            if ballast.stdout is None or ballast.stdout.readline().strip() != "held":
                return Outcome("not run", "the memory could not be held")
            recipe = Recipe(model, home / case.name, "cuda", environment)
            process = recipe.start([case])
            if not wait_for_end(process, deadline):
                return Outcome("not run", "time was over in the middle of it")
        finally:
            ballast.kill()
    said = recipe.read_end()
    if process.returncode == 4 and f"out of memory in the {case.fails_in} phase" in said:
        return Outcome("passed", f"with {case.free_gib} GiB free: out of memory in the {case.fails_in} phase")
    return Outcome("failed", f"exit code {process.returncode}, expected the {case.fails_in} phase to be named: {said}")


_BUILD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, Qwen3Config
folder, base, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.manual_seed(0)
config = Qwen3Config(**{**json.loads(open(base + "/config.json").read()), **shape, "dtype": "bfloat16"})
torch.set_default_dtype(torch.bfloat16)
AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="20GB")
"""


def build_model(folder: Path, environment: Mapping[str, str], *, tiny: bool) -> Path:
    """Makes the model once: Qwen3-0.6B's shape, random weights in bf16, and the embedded model's tokenizer."""
    if tiny:
        return TINY_BASE
    if (folder / "tokenizer.json").exists():
        return folder
    from tests.evidence.real_shape import SHAPE

    shape = {name: value for name, value in SHAPE.items() if not name.endswith("token_id")}
    shape["layer_types"] = ["full_attention"] * SHAPE["num_hidden_layers"]
    line = [sys.executable, "-P", "-c", _BUILD, str(folder), str(TINY_BASE), json.dumps(shape)]
    subprocess.run(line, env=dict(environment), check=True)
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        shutil.copyfile(TINY_BASE / name, folder / name)
    return folder


# --- judging


def read_metrics(home: Path, name: str) -> list[dict[str, float]]:
    """Reads the logged steps of a case's stage; none of one that logs none, or is not done."""
    path = home / "runs" / "gpu" / "stages" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def judge_case(case: Any, home: Path, options: argparse.Namespace) -> Outcome:
    """Judges a case that has ended well: its losses are those of the CPU, its peak is not above the estimate."""
    steps = read_metrics(home / "run", case.name)
    said, faults = [], []
    losses = [step["loss"] for step in steps if "loss" in step]
    if not all(map(math.isfinite, losses)):
        faults.append(f"losses {losses}")
    if case.tolerance:
        on_cpu = [step["loss"] for step in read_metrics(home / "cpu", case.name) if "loss" in step]
        if len(on_cpu) < len(losses) or not losses:
            said.append("not compared: the CPU had no time for the same steps")
        else:
            fault, differences = compare_losses(losses, on_cpu, case.tolerance)
            faults += fault
            said.append(
                f"losses within {differences[0]:.1e} of fp32 on the CPU, later {max(differences[1:] or [0]):.1e}"
            )
    peak = max((step.get("memory/peak_gib", 0.0) for step in steps), default=0.0)
    estimate = max((step.get("memory/estimate_gib", 0.0) for step in steps), default=0.0)
    if peak and estimate:
        said.append(f"peak {peak:.2f} GiB, estimate {estimate:.2f}")
        if options.device == "cuda" and peak > ABOVE_ESTIMATE * estimate:
            faults.append(f"the peak is {peak / estimate:.2f} times the estimate")
    return Outcome("failed" if faults else "passed", "; ".join([*faults, *said]))


def compare_losses(
    losses: Sequence[float], expected: Sequence[float], tolerance: tuple[float, float]
) -> tuple[list[str], list[float]]:
    """Returns what is wrong with losses, and the relative difference of each to those expected."""
    differences = [abs(one - other) / max(abs(other), 1e-3) for one, other in zip(losses, expected, strict=False)]
    limits = [tolerance[0], *[tolerance[1]] * (len(differences) - 1)]
    faults = [
        f"loss of step {step} differs by {difference:.1e}, more than {limit:g}"
        for step, (difference, limit) in enumerate(zip(differences, limits, strict=True), 1)
        if not difference <= limit
    ]
    return faults, differences


def print_outcomes(
    all_cases: Sequence[Any], outcomes: Mapping[str, Outcome], options: argparse.Namespace, machine: Machine
) -> None:
    """Prints what came of each case, and the lines of docs/hardware.md that follow from it."""
    for name, outcome in outcomes.items():
        print(f"{outcome.state:8} {name:20} {outcome.said}")
    lines = list_lines(all_cases, outcomes, options)
    is_dry = options.device == "cpu"
    today, command = datetime.now(UTC).date().isoformat(), " ".join(["python tests/gpu/run.py", *sys.argv[1:]])
    print("\nA dry run: these lines are no evidence.\n" if is_dry else "\nFor docs/hardware.md:\n")
    print("| path | GPU |\n|---|---|")
    for line, said in lines.items():
        print(f"| `{line}` | {said} |")
    if not is_dry:
        what = f"{', '.join(sorted(set(machine.gpus)))}, torch {machine.torch}: random weights of Qwen3-0.6B's shape"
        print(f"\n| G | {today} | `{command}` | {what} |")


def list_lines(
    all_cases: Sequence[Any], outcomes: Mapping[str, Outcome], options: argparse.Namespace
) -> dict[str, str]:
    """Returns what the column of GPUs is to say of each line: the mark of this run, or why there is none."""
    from tests.gpu.cases import WITHOUT_CASE

    lines: dict[str, str] = {}
    mark = "dry run" if options.device == "cpu" else "G"
    for case in all_cases:
        outcome = outcomes.get(case.name)
        for line in case.lines if outcome else ():
            said = mark if outcome.state == "passed" else f"*untested on hardware* ({outcome.state}: {outcome.said})"
            lines[line] = said
    return (
        lines
        if options.only
        else {**lines, **{line: f"*untested on hardware* ({why})" for line, why in WITHOUT_CASE.items()}}
    )


if __name__ == "__main__":
    sys.exit(main())

"""Writes files that start a run on several nodes: a batch script for Slurm, or a script that starts it over SSH.

They only start `qwen-align run` once on every node, which does the rest (align/pipeline/coordinator.py).
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.node_plans import count_run_nodes, list_shared_stages
from qwen_align.align.pipeline.plan import Plan

# Seconds before Slurm's time limit at which the run is asked to stop: a checkpoint of 100 GB at 1 GB/s, and a step.
STOP_BEFORE_END_S = 300
MOST_REQUEUES = 50  # so that a job that can never go on does not begin again for ever
_UNTESTED = "untested on hardware: read it before it runs"


def write_slurm_script(plan: Plan, command: Sequence[str], options: Sequence[str]) -> str:
    """Returns a batch script that starts the run on as many nodes as the recipe asks for.

    `command`: what every node runs. `options`: of sbatch, without the leading --. Raises RecipeError for a recipe of
    one node, and for an option that the script says itself.
    """
    nodes = _require_nodes(plan)
    own = {
        "job-name": plan.recipe.name,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "exclusive": "",  # else a task gets one core
        "signal": f"TERM@{STOP_BEFORE_END_S}",
        "output": f"{plan.recipe.name}-%j.txt",
        "open-mode": "append",
    }
    given = [_parse_option(option) for option in options]
    if fixed := [name for name, _ in given if name in ("nodes", "ntasks-per-node", "ntasks", "array")]:
        raise RecipeError(f"--sbatch {fixed[0]}: the recipe says it, by runtime.nodes and processes: one task a node")
    gpus = max(stage.runtime.processes for stage in list_shared_stages(plan.stages))
    if any(stage.runtime.device != "cpu" for stage in list_shared_stages(plan.stages)):
        own["gpus-per-node"] = str(gpus)
    own |= dict(given)
    lines = [f"#SBATCH --{name}" + (f"={value}" if value else "") for name, value in own.items()]
    return f"""#!/bin/bash
# Starts the run "{plan.recipe.name}" on {nodes} nodes. Written by `qwen-align launch --slurm`;
# {_UNTESTED}. Submit it with sbatch.
# All nodes need this Python, the recipe and the home at these paths.
{chr(10).join(lines)}
set -uo pipefail
cd {shlex.quote(str(Path.cwd()))} || exit 4

srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 --cpu-bind=none \\
  {shlex.join(command)}
code=$?
# 75: stopped before the time limit, or a node did not come back. The run goes on where it stopped.
if [ "$code" -eq 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MOST_REQUEUES} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def write_ssh_script(plan: Plan, command: Sequence[str], hosts: str, port: int) -> str:
    """Returns a script that starts the run on hosts over SSH, with what each prints behind its name.

    `command`: what every node runs, but for its place. `hosts`: names with commas between them, as `ssh` takes them;
    node 0 is the first. Raises RecipeError where they are not as many as the recipe asks for.
    """
    nodes = _require_nodes(plan)
    names = hosts.split(",")
    odd = [name for name in names if not re.fullmatch(r"(?:[\w.-]+@)?[A-Za-z0-9][\w.-]*", name)]
    if odd:
        raise RecipeError(f"--hosts {hosts}: {odd[0]!r} is no host; names or addresses with commas between them")
    if len(set(names)) != nodes or len(names) != nodes:
        raise RecipeError(f"--hosts {hosts}: the recipe asks for {nodes} nodes (runtime.nodes), each another host")
    meeting = f"{names[0].rpartition('@')[2]}:{port}"
    folder = shlex.quote(str(Path.cwd()))
    remote = shlex.quote(f"cd {folder} && exec {shlex.join(command)} --rendezvous {meeting} --node-rank ")
    return f"""#!/bin/bash
# Starts the run "{plan.recipe.name}" on {nodes} hosts over SSH. Written by `qwen-align launch --hosts`;
# {_UNTESTED}. It needs SSH without a password.
# All hosts need this Python, the recipe and the home at these paths; {names[0]} has to be reachable at {meeting}.
# Ctrl-C ends it on all of them. Run it again to go on from the last checkpoint.
set -uo pipefail
hosts=({" ".join(names)})
run={remote}

pids=()
for rank in "${{!hosts[@]}}"; do
  host="${{hosts[$rank]}}"
  # A terminal (-tt), so that the run ends with its connection.
  ssh -tt -o BatchMode=yes "$host" "$run$rank" </dev/null > >(sed "s/^/[$host] /") 2>&1 &
  pids+=("$!")
done
trap 'kill -TERM "${{pids[@]}}" 2>/dev/null' INT TERM
code=0
for pid in "${{pids[@]}}"; do
  wait "$pid" || code=$?
done
exit "$code"
"""


def _require_nodes(plan: Plan) -> int:
    """Returns the number of nodes that a recipe asks for. Raises RecipeError where it is one."""
    nodes = count_run_nodes(plan.stages)
    if nodes == 1:
        raise RecipeError(
            "launch: the recipe asks for one node, on which `qwen-align run` starts all there is; set runtime.nodes"
        )
    return nodes


def _parse_option(option: str) -> tuple[str, str]:
    """Splits an option of sbatch, such as time=24:00:00. Raises RecipeError for what is none."""
    matched = re.fullmatch(r"(?:--)?([a-z][a-z-]*)(?:=(\S.*))?", option)
    if not matched:
        raise RecipeError(f"--sbatch {option}: has to be an option of sbatch, such as time=24:00:00")
    return matched[1], matched[2] or ""


def build_command(recipe: Path, home: Path, overrides: Sequence[str], *, tiny: bool) -> list[str]:
    """Returns the command that every node runs, with paths that hold wherever it begins."""
    line = [sys.executable, "-P", "-m", "qwen_align.cli", "run", str(recipe.resolve()), "--home", str(home.resolve())]
    for override in overrides:
        line += ["--set", override]
    return line + ["--tiny"] * tiny


def write_script(path: Path, script: str) -> None:
    """Writes a script that can be executed. Raises RecipeError where there is a file of that name."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(script)
    except FileExistsError:
        raise RecipeError(f"--to {path}: is there already; delete it, or give another name") from None
    path.chmod(path.stat().st_mode | 0o111)

"""The files that start a run on several nodes: their text, and what they do with pretended Slurm and SSH."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_align.align.commands import launch
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.pipeline.plan import plan as make_plan

GOLDEN = Path(__file__).parents[2] / "golden"
DATA = {
    "name": "data",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 8, "steps": [1]},
}
DRAWN: dict[str, Any] = {
    "name": "drawn",
    "kind": "rollout",
    "from_model": "base",
    "from_data": "data",
    "completions_per_prompt": 1,
    "sampling": {"max_tokens": 4},
    "rewards": [{"kind": "random"}],
}


def plan_run(folder: Path, **runtime: Any) -> Plan:
    recipe = {"name": "big", "models": {"base": {"shipped": "tiny_base"}}, "runtime": runtime, "stages": [DATA, DRAWN]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return make_plan(folder / "recipe.yaml", folder)


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a script with shell programs in the place of commands. Each notes its arguments."""

    def run(script: str, **programs: str) -> "subprocess.CompletedProcess[str]":
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, program in programs.items():
            launch.write_script(folder / name, f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/asked.txt\n{program}\n')
        path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(
            ["bash", "-c", script], env={**os.environ, **path}, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.mark.parametrize("how", ["slurm", "ssh"])
def test_the_scripts_are_as_recorded(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_run(tmp_path, nodes=2, processes=8)
    command = launch.build_command(tmp_path / "recipe.yaml", tmp_path / "a home", ["seed=5"], tiny=True)
    if how == "slurm":
        script = launch.write_slurm_script(plan, command, ["partition=gpu", "--time=24:00:00", "requeue"])
    else:
        script = launch.write_ssh_script(plan, command, "me@gpu01,gpu02", 29400)
    said = script.replace(str(tmp_path), "/work").replace(sys.executable, "/env/bin/python")
    assert said == (GOLDEN / f"launch_{how}.sh").read_text()
    assert "untested on hardware" in said.splitlines()[2]
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def test_the_script_for_ssh_starts_a_node_on_each_host_and_ends_as_they_end(
    tmp_path: Path, pretend: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    plan = plan_run(tmp_path, nodes=2)
    script = launch.write_ssh_script(plan, ["echo", "it's", "$HOME `x`"], "me@a,b", 77)
    done = pretend(script, ssh='bash -c "${@: -1}"')
    assert sorted(done.stdout.splitlines()) == [
        "[b] it's $HOME `x` --rendezvous a:77 --node-rank 1",
        "[me@a] it's $HOME `x` --rendezvous a:77 --node-rank 0",
    ]
    assert done.returncode == 0
    failing = launch.write_ssh_script(plan, ["sh", "-c", '[ "$4" = 0 ] || exit 75', "x"], "a,b", 77)
    assert pretend(failing).returncode == 75


def test_the_script_for_slurm_is_put_in_the_queue_again_where_the_run_can_go_on(
    tmp_path: Path, pretend: Callable[..., "subprocess.CompletedProcess[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = launch.write_slurm_script(plan_run(tmp_path, nodes=2), ["run", "a b"], [])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    asked = tmp_path / "asked.txt"
    srun = "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --cpu-bind=none run a b"
    assert pretend(script, srun="exit 75", scontrol="").returncode == 75
    assert asked.read_text().splitlines() == [srun, "scontrol requeue 7"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(launch.MOST_REQUEUES))
    assert pretend(script).returncode == 75
    assert asked.read_text().splitlines()[2:] == [srun]
    (tmp_path / "bin" / "srun").unlink()
    asked.unlink()
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert pretend(script, srun="exit 4").returncode == 4
    assert asked.read_text().splitlines() == [srun]


def test_gpus_are_asked_for_where_a_stage_may_use_them(tmp_path: Path) -> None:
    def lines(**runtime: Any) -> list[str]:
        script = launch.write_slurm_script(plan_run(tmp_path, nodes=3, **runtime), [], ["job-name=mine"])
        return [line for line in script.splitlines() if line.startswith("#SBATCH")]

    assert "#SBATCH --gpus-per-node=4" in lines(processes=4)
    assert not any("gpus" in line for line in lines(processes=4, device="cpu"))
    assert {"#SBATCH --nodes=3", "#SBATCH --job-name=mine"} <= set(lines())


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda plan: launch.write_ssh_script(plan, [], "a", 1), "asks for 2 nodes"),
        (lambda plan: launch.write_ssh_script(plan, [], "a,a", 1), "asks for 2 nodes"),
        (lambda plan: launch.write_ssh_script(plan, [], "a,-oProxyCommand=x", 1), "'-oProxyCommand=x' is no host"),
        (lambda plan: launch.write_ssh_script(plan, [], "a,b c", 1), "'b c' is no host"),
        (lambda plan: launch.write_ssh_script(plan, [], "a,", 1), "'' is no host"),
        (lambda plan: launch.write_slurm_script(plan, [], ["nodes=4"]), "--sbatch nodes: the recipe says it"),
        (lambda plan: launch.write_slurm_script(plan, [], ["time 3"]), "has to be an option of sbatch"),
        (lambda plan: launch.write_slurm_script(plan, [], ["a=1\nrm"]), "has to be an option of sbatch"),
    ],
)
def test_what_does_not_fit_the_recipe_is_refused(write: Callable[[Plan], str], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        write(plan_run(tmp_path, nodes=2))


def test_a_recipe_of_one_node_needs_no_script_and_a_file_is_not_overwritten(tmp_path: Path) -> None:
    for write in (launch.write_slurm_script, lambda plan, command, _: launch.write_ssh_script(plan, command, "a", 1)):
        with pytest.raises(RecipeError, match="the recipe asks for one node, on which `qwen-align run` starts all"):
            write(plan_run(tmp_path, processes=8), [], [])
    launch.write_script(tmp_path / "go.sh", "#!/bin/bash\necho started\n")
    assert subprocess.run([tmp_path / "go.sh"], capture_output=True, check=True).stdout == b"started\n"
    with pytest.raises(RecipeError, match="is there already"):
        launch.write_script(tmp_path / "go.sh", "")

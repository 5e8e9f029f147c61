"""Every command of the READMEs runs as it stands there, in their order; the two make targets are what CI runs."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_align.align.settings.recipe_file import load_variants

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh.md")
MAKE = ["make quickstart", "make test"]


def commands(name: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_both_readmes_say_the_same_commands_and_figures() -> None:
    assert commands(READMES[0]) == commands(READMES[1])
    figures = [re.findall(r"\d+\.\d ± \d+\.\d", (ROOT / name).read_text(encoding="utf-8")) for name in READMES]
    assert figures[0] == figures[1]
    assert figures[0]


def test_ci_runs_the_make_targets() -> None:
    assert commands(READMES[0])[:2] == MAKE
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(target in ci.splitlines() for target in MAKE)


def test_links_lead_somewhere() -> None:
    for name in (*READMES, "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{name}: {target}"


@pytest.mark.slow(seconds=50)
def test_every_command_runs(tmp_path: Path) -> None:
    beside_python = str(Path(sys.executable).parent)
    assert shutil.which("qwen-align", path=beside_python), "install the package: pip install -e ."
    environment = {**os.environ, "PATH": f"{beside_python}:{os.environ['PATH']}"}
    for line in commands(READMES[0])[2:]:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout or ">" in line, f"{line} said nothing"
    assert (tmp_path / "runs" / "first_sft" / "report.md").exists()


def test_the_python_that_is_printed_runs() -> None:
    """Each line with a comment says in it what the expression gives."""
    for name in (*READMES, "docs/rewards.md"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        assert blocks, name
        for block in blocks:
            known: dict[str, object] = {}
            for node in ast.parse(block).body:
                line = ast.get_source_segment(block, node) or ""
                if isinstance(node, ast.Expr):
                    given = repr(eval(line, known))
                    said = block.splitlines()[(node.end_lineno or 1) - 1].rpartition("  # ")[2]
                    assert said.strip("…") in given, f"{name}: {line} gives {given}"
                else:
                    exec(line, known)


def test_the_recipes_that_are_printed_are_recipes(tmp_path: Path) -> None:
    """The YAML of the READMEs, completed where it says `...`, is read by the same door as a recipe file."""
    for name in READMES:
        ladder, own_data = re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        for text in (ladder, f"name: x\nstages:\n{own_data}"):
            path = tmp_path / "recipe.yaml"
            path.write_text(text, encoding="utf-8")
            assert load_variants(path)

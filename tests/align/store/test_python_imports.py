"""What a user's Python file depends on, read from its source and from where Python would find each module."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from qwen_align.align.store.python_imports import find_dependencies


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "reward.py"


def test_neighbours_are_followed_and_packages_have_their_version(tmp_path: Path) -> None:
    file = write(
        tmp_path / "mine",
        {
            "reward.py": "import os, helper\nimport yaml\ntry:\n    import not_there\nexcept ImportError:\n    pass\n",
            "helper.py": "from helper2 import a\nimport numpy.linalg as la\nimport qwen_align.reward\n",
            "helper2.py": "import helper\n",
            "other.py": "",
            "yaml/notes.txt": "a folder of this name is no package",
        },
    )
    found = find_dependencies(file)
    assert sorted(found.files) == ["helper.py", "helper2.py"]
    version = importlib.metadata.version
    assert found.packages == {"PyYAML": version("PyYAML"), "numpy": version("numpy"), "not_there": None}


def test_a_folder_is_a_package_where_python_would_take_it_for_one(tmp_path: Path) -> None:
    file = write(
        tmp_path / "mine",
        {
            "reward.py": "import with_init.a, loose.b\n",
            "with_init/__init__.py": "",
            "with_init/a.py": "import loose.c\n",
            "with_init.py": "raise RuntimeError('the package comes first')\n",
            "loose/b.py": "",
            "loose/deep/c.py": "",
        },
    )
    assert sorted(find_dependencies(file).files) == [
        "loose/b.py",
        "loose/deep/c.py",
        "with_init/__init__.py",
        "with_init/a.py",
    ]


def test_modules_of_the_users_elsewhere_count_by_what_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of an editable install, whose version stays while its files change."""
    write(tmp_path / "elsewhere", {"lab_rules/__init__.py": "import lab_words\n", "lab_words.py": ""})
    file = write(tmp_path / "mine", {"reward.py": "import lab_rules\n"})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "elsewhere")])
    found = find_dependencies(file)
    assert found.files == {
        "lab_rules/__init__.py": tmp_path / "elsewhere" / "lab_rules" / "__init__.py",
        "lab_words.py": tmp_path / "elsewhere" / "lab_words.py",
    }
    assert not found.packages


@pytest.mark.parametrize("source", ["def judge(:", "", "import __main__, sys\n", "\0"])
def test_what_has_no_imports_depends_on_nothing(tmp_path: Path, source: str) -> None:
    assert find_dependencies(write(tmp_path, {"reward.py": source})) == ({}, {})

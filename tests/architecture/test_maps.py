"""The maps for developers name only files that are there, and CONTRIBUTING is short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAPS = ("CONTRIBUTING.md", "docs/architecture.md", "docs/glossary.md", "reward/math/README.md", "reward/code/README.md")
FILE = re.compile(r"`([\w./-]+\.(?:py|md|ya?ml|j2|toml))`")


@pytest.mark.parametrize("name", MAPS)
def test_a_map_names_files_that_are_there(name: str) -> None:
    path = ROOT / name
    for file in FILE.findall(path.read_text(encoding="utf-8")):
        places = [ROOT / file, path.parent / file, ROOT / "align" / file]
        places += [*(ROOT / "align").glob(f"*/{file}"), *(ROOT / "tests").rglob(Path(file).name)]
        assert any(place.exists() for place in places), f"{name}: there is no {file}"


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 120

"""Deletes stored stages that no run links to."""

from collections.abc import Iterator
from pathlib import Path

from qwen_align.align.errors import StageError
from qwen_align.align.store.files import measure_gib, remove_tree
from qwen_align.align.store.store import Folder


def prune(home: Path, *, dry_run: bool) -> Iterator[tuple[Path, float]]:
    """(folder, GiB) of each stage deleted; a stage that is being worked on is left alone."""
    linked = {link.resolve() for link in home.glob("runs/*/stages/*")}
    for folder in sorted(home.glob("store/*-*")):
        if not folder.is_dir() or folder.resolve() in linked:
            continue
        size = measure_gib(folder)
        if not dry_run:
            try:
                with Folder(folder).locked():
                    Folder(folder).clear()
                    remove_tree(folder)
            except StageError:
                continue
        yield folder, size

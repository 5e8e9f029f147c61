"""Deletes stored stages that no run links to."""

from collections.abc import Iterator
from pathlib import Path

from qwen_align.align.errors import StageError
from qwen_align.align.store.files import measure_gib, remove_tree
from qwen_align.align.store.stage_folder import StageFolder


def prune_store(home: Path, *, dry_run: bool) -> Iterator[tuple[Path, float]]:
    """Deletes stored stages that no run links to and yields (folder, GiB) of each. A locked stage is not deleted."""
    linked = {link.resolve() for link in home.glob("runs/*/stages/*")}
    for folder in sorted(home.glob("store/*-*")):
        if not folder.is_dir() or folder.resolve() in linked:
            continue
        size = measure_gib(folder)
        if not dry_run:
            try:
                with StageFolder(folder).hold_lock():
                    StageFolder(folder).delete_contents()
                    remove_tree(folder)
            except StageError:
                continue
        yield folder, size

"""Verifies the output files of stored stages against their manifests before a later stage reads them."""

from collections.abc import Mapping
from pathlib import Path

from qwen_align.align.errors import StageError
from qwen_align.align.models.model_description import list_base_paths
from qwen_align.align.store import integrity
from qwen_align.align.store.stage_folder import StageFolder


class InputVerifier:
    """A verifier of stage folders, which verifies each folder once per run.

    `names`: the stages' names by their resolved folders.
    """

    def __init__(self, names: Mapping[Path, str]) -> None:
        self._names = names
        self._verified: set[Path] = set()

    def verify_folder(self, folder: Path) -> None:
        """Verifies the files of a stage's folder and of the folders that its model builds on.

        Raises StageError when a file is not what its stage wrote.

        Folders of models from outside are left alone: their digests are in the keys.
        """
        if folder.resolve() in self._verified or folder.resolve() not in self._names:
            return
        folder = folder.resolve()
        name = self._names[folder]
        verify_outputs(name, folder)
        self._verified.add(folder)
        for path in list_base_paths(folder):
            self.verify_folder(path.resolve().parent)
            self.verify_folder(path.resolve())


def verify_outputs(name: str, folder: Path) -> None:
    """Verifies the files of a stored stage. Raises StageError, with the stage's name, for the first that is damaged."""
    try:
        integrity.verify_digests(folder, StageFolder(folder).read_manifest().get("outputs", {}))
    except integrity.Damaged as error:
        raise StageError(f"stage '{name}': {folder}: {error}; recompute it with --force {name}") from None

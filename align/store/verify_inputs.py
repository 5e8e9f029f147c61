"""Verifies the output files of stored stages against their manifests before a later stage reads them."""

from collections.abc import Mapping
from pathlib import Path

from qwen_align.align.errors import StageError
from qwen_align.align.models.model_description import is_stage_folder, list_base_paths
from qwen_align.align.store import integrity
from qwen_align.align.store.stage_folder import StageFolder


class InputVerifier:
    """A verifier of stage folders, which verifies each folder once per run.

    `names`: the names of the plan's stages by their resolved folders.
    """

    def __init__(self, names: Mapping[Path, str]) -> None:
        self._names = names
        self._verified: set[Path] = set()

    def verify_folder(self, folder: Path) -> None:
        """Verifies the files of a stage's folder and of the folders that its model builds on.

        Raises StageError when a file is not what its stage wrote.

        So are folders of finished stages that a recipe names as models, whose key is that of their manifest. Other
        folders of models are left alone: the digests of their files are in the keys.
        """
        folder = folder.resolve()
        name = self._names.get(folder)
        if folder in self._verified or (name is None and not is_stage_folder(folder)):
            return
        verify_outputs(name, folder)
        self._verified.add(folder)
        for path in list_base_paths(folder):
            self.verify_folder(path.resolve().parent)
            self.verify_folder(path.resolve())


def verify_outputs(name: str | None, folder: Path) -> None:
    """Verifies the files of a stored stage. Raises StageError, with the stage's name, for the first that is damaged.

    `name`: None for a finished stage that a recipe names as a model.
    """
    try:
        integrity.verify_digests(folder, StageFolder(folder).read_manifest().get("outputs", {}))
    except integrity.Damaged as error:
        if name is None:
            raise StageError(f"{folder}: {error}; it is no longer what its stage made: make it again") from None
        raise StageError(f"stage '{name}': {folder}: {error}; recompute it with --force {name}") from None

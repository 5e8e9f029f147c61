"""Verifies the output files of stored stages against their manifests before a later stage reads them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen_align.align.errors import StageError
from qwen_align.align.models.model_description import MODEL, is_stage_folder
from qwen_align.align.store import integrity
from qwen_align.align.store.files import read_json
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
        try:
            integrity.verify_digests(folder, StageFolder(folder).read_manifest()["outputs"])
        except integrity.Damaged as error:
            if name is None:
                raise StageError(f"{folder}: {error}; it is no longer what its stage made: make it again") from None
            raise StageError(f"stage '{name}': {folder}: {error}; recompute it with --force {name}") from None
        self._verified.add(folder)
        for base in _list_base_folders(folder):
            self.verify_folder(base)


def _list_base_folders(folder: Path) -> Iterator[Path]:
    """Yields the folders of the stages whose model or adapters a model.json builds on."""
    if (folder / MODEL).exists():
        description = read_json(folder / MODEL)
        for path in (description.get("base"), *description.get("adapters", [])):
            if path and not path.startswith("hub:"):
                yield (folder / path).resolve().parent
                yield (folder / path).resolve()

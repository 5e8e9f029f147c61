"""What stored stages made, compared with their manifests before a later stage reads it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen_align.align.errors import StageError
from qwen_align.align.store import integrity
from qwen_align.align.store.files import read_json
from qwen_align.align.store.store import Folder


class Inspector:
    """Looks at every folder once a run; `names`: the stages' by their resolved folders."""

    def __init__(self, names: Mapping[Path, str]) -> None:
        self._names = names
        self._seen: set[Path] = set()

    def look(self, folder: Path) -> None:
        """Raises StageError when what a stage reads with this folder is not what its maker wrote.

        Folders of models from outside are left alone: their digests are in the keys.
        """
        if folder.resolve() in self._seen or folder.resolve() not in self._names:
            return
        folder = folder.resolve()
        name = self._names[folder]
        try:
            integrity.compare(folder, Folder(folder).manifest()["outputs"])
        except integrity.Damaged as error:
            raise StageError(f"stage '{name}': {folder}: {error}; recompute it with --force {name}") from None
        self._seen.add(folder)
        for below in _named_by(folder):
            self.look(below)


def _named_by(folder: Path) -> Iterator[Path]:
    """The folders of the stages whose model or adapters a model.json builds on."""
    if (folder / "model.json").exists():
        said = read_json(folder / "model.json")
        for one in (said.get("base"), *said.get("adapters", [])):
            if one and not one.startswith("hub:"):
                yield (folder / one).resolve().parent
                yield (folder / one).resolve()

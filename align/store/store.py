"""Implements the store: one folder per stage, named by the key of everything its result depends on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.model_description import is_stage_folder
from qwen_align.align.models.model_files import find_model_folder
from qwen_align.align.pipeline.graph import Stage
from qwen_align.align.references import OutsideFile, PythonFile, Ref, find_outside_files, to_plain_value
from qwen_align.align.settings.recipe import ModelSource
from qwen_align.align.stages.registry import CODE_VERSIONS
from qwen_align.align.store.digest_cache import DIGESTS, DigestCache
from qwen_align.align.store.files import to_canonical_json
from qwen_align.align.store.keys import list_key_fields, list_key_packages
from qwen_align.align.store.outside_files import (
    OutsideFiles,
    find_deepspeed_file,
    list_model_files,
    list_outside_files,
)
from qwen_align.align.store.python_imports import find_dependencies
from qwen_align.align.store.stage_folder import StageFolder

_NOT_IN_KEY = {"name", "runtime", "seed"}  # the seed stands beside the settings, resolved


class Store:
    """A store of stage results, which computes the keys of stages and external models and finds folders by key."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._digests = DigestCache(root / DIGESTS)
        self._taken: dict[str, str] = {}

    def get_folder(self, kind: str, key: str) -> StageFolder:
        """Returns the folder of the stage with the given key, whether it exists or not."""
        return StageFolder(self.root / f"{kind}-{key[:16]}")

    def compute_key(self, stage: Stage, input_keys: Mapping[str, str]) -> str:
        """Computes a stage's key, the sha256 of everything its result depends on.

        `input_keys`: the keys of its inputs.

        Raises RecipeError naming the setting when an outside file cannot be read.
        """
        deepspeed = find_deepspeed_file(stage.settings, stage.runtime)
        for setting, path in [
            *find_outside_files(stage.settings),
            *([("runtime.deepspeed", deepspeed)] if deepspeed else []),
        ]:
            try:
                self.compute_file_digest(path)
            except OSError as error:
                problem = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
                raise RecipeError(
                    f"stage '{stage.origin}': {setting}: {path}: {problem}; "
                    "a relative path starts at the recipe's folder"
                ) from None

        def replace_reference(reference: Ref) -> dict[str, str]:
            """Returns the key of the stage or model that a reference names."""
            return {"input": input_keys[reference]}

        def replace_file(path: OutsideFile) -> dict[str, Any]:
            """Returns the digest of a user's file outside the store, with what a Python file depends on."""
            return {"sha256": self.compute_file_digest(path)} | (
                self._describe_dependencies(Path(path)) if isinstance(path, PythonFile) else {}
            )

        settings = {
            name: to_plain_value(value, ref=replace_reference, file=replace_file, fields=list_key_fields)
            for name, value in list_key_fields(stage.settings)
            if name not in _NOT_IN_KEY
        }
        key_parts: dict[str, Any] = {"settings": settings, "code": CODE_VERSIONS[stage.kind], "seed": stage.seed}
        if packages := list_key_packages(stage.settings):
            key_parts["packages"] = packages
        if deepspeed:
            key_parts["deepspeed"] = replace_file(deepspeed)
        if runtime_settings := stage.settings.get_runtime_key_settings(stage.runtime):
            key_parts["runtime"] = runtime_settings
        return hashlib.sha256(to_canonical_json(key_parts).encode()).hexdigest()

    def _describe_dependencies(self, file: Path) -> dict[str, Any]:
        """Returns the digests of the files and the versions of the packages that a user's Python file depends on."""
        found = find_dependencies(file)
        files = {name: self.compute_file_digest(path) for name, path in sorted(found.files.items())}
        return {name: value for name, value in (("files", files), ("packages", found.packages)) if value}

    def find_model_folder(self, source: ModelSource) -> Path:
        """Returns the folder of a model that no stage makes, or what names a hub model. Raises RecipeError."""
        return find_model_folder(source, self.root)

    def compute_model_key(self, source: ModelSource) -> str:
        """Returns the key of an external model: its files' digests, its hub id and commit, or its stage's key.

        Raises RecipeError.
        """
        if source.hub:
            scaled = f"#yarn={source.yarn.model_dump_json(exclude_none=True)}" if source.yarn else ""
            return f"hub:{source.hub}@{source.revision}{scaled}"
        folder = self.find_model_folder(source)
        if is_stage_folder(folder):
            return str(StageFolder(folder).read_manifest()["key"])
        digests = {str(path.relative_to(folder)): self.compute_file_digest(path) for path in list_model_files(folder)}
        return hashlib.sha256(to_canonical_json(digests).encode()).hexdigest()

    def compute_file_digest(self, path: Path | str) -> str:
        """Returns the sha256 of a user's file, from the cache if the file is unchanged.

        It is taken once: all keys that this store computes, and what is compared with them, are of the same content.
        """
        if str(path) not in self._taken:
            self._taken[str(path)] = self._digests.get_digest(Path(path))
        return self._taken[str(path)]

    def digest_outside_files(self, stage: Stage, model_folders: list[Path]) -> OutsideFiles:
        """Returns the digests of the files outside the store that a stage's key was computed of.

        `model_folders`: of the models among its inputs that no stage has made.
        """
        paths = list_outside_files(stage.settings, stage.runtime, model_folders)
        return OutsideFiles(
            {str(path): self.compute_file_digest(path) for path in paths}, list(map(str, model_folders))
        )

    def save_file_digests(self) -> None:
        """Writes the cached digests of the user's files to disk for the next run."""
        self._digests.save()

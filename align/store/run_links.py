"""Links a run's folder to the stages it uses, and finds the stages that run folders name."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from qwen_align.align.store.lease import hold_joint_lease
from qwen_align.align.store.stage_folder import LEASE

LINKS = "stages"  # in a run's folder: a link to each of its stages, which `prune` keeps


@contextlib.contextmanager
def hold_run_links(run_folder: Path, targets: Mapping[str, Path]) -> Iterator[None]:
    """Links a run's folder to its stages' folders, given by name, and keeps the links inside the `with` block.

    At no moment is a stage without a link that had one before and still belongs to the run. Links of stages that the
    recipe no longer has go last. Where another run of the same name is at work all are kept: it needs them.
    """
    links = run_folder / LINKS
    links.mkdir(parents=True, exist_ok=True)
    with hold_joint_lease(run_folder / LEASE) as lease:
        is_alone = not lease.members
        for name, folder in targets.items():
            target = os.path.relpath(folder.resolve(), links.resolve())
            if not is_alone and (links / name).is_symlink() and (old_target := os.readlink(links / name)) != target:
                _replace_link(links / f"{name}~{Path(old_target).name}", old_target)
            _replace_link(links / name, target)
        if is_alone:
            for old in links.iterdir():
                if old.name not in targets and old.is_symlink():
                    old.unlink()
        yield


def _replace_link(link: Path, target: str) -> None:
    """Makes a link to a folder, or replaces the link that is there, atomically."""
    new = link.with_name(f".{link.name}.{secrets.token_hex(8)}")
    new.symlink_to(target, target_is_directory=True)
    try:
        new.replace(link)
    finally:
        new.unlink(missing_ok=True)


def find_named_stages(home: Path) -> set[str]:
    """Returns the names of the store folders that the run folders of a home name.

    They are those that links point to, and those from which a run's recipe reads a model. A link counts by the name of
    its target, so that it also counts where its run folder has been moved.
    """
    named: set[str] = set()
    for run_folder in (home / "runs").iterdir() if (home / "runs").is_dir() else ():
        for folder, folders, files in os.walk(run_folder):
            entries = [Path(folder, name) for name in (*folders, *files)]
            named |= {Path(os.readlink(entry)).name for entry in entries if entry.is_symlink()}
        named |= {part for path in _list_model_paths(run_folder / "recipe.yaml") for part in Path(path).parts}
    return named


def _list_model_paths(recipe: Path) -> list[str]:
    """Returns the folders from which a run's recipe reads models. Returns [] where there is no such recipe."""
    try:
        models = yaml.safe_load(recipe.read_text(encoding="utf-8"))["models"]
        return [str(source["path"]) for source in models.values() if source.get("path")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return []

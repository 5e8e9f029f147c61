"""Records the provenance of a result: library versions and the commit of the user's repository."""

import importlib.metadata
import subprocess

LIBRARIES = ("accelerate", "datasets", "peft", "tokenizers", "torch", "transformers", "trl")


def read_library_versions() -> dict[str, str]:
    """Returns the installed versions of the libraries that results depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def find_git_commit() -> str | None:
    """Returns the git commit of the current folder. Returns None outside a repository."""
    try:
        completed = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None if completed.returncode == 0 else None

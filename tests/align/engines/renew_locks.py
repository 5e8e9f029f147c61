"""Writes the locks of the engines anew from their catalogue: `make engine_locks`. It asks package indexes.

uv resolves for a platform and a Python that need not be those of this process. The hashes of a package's files that fit
them stand in the lock. Builds of torch for CPUs are not on the package index: UV_FIND_LINKS or UV_EXTRA_INDEX_URL says
where they are (without them PIP_FIND_LINKS).
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from qwen_align.align.engines.catalogue import ENGINES, Device, EngineBuild, EngineName
from qwen_align.align.engines.locks import FOLDER, format_lock_name

PLATFORM = "linux_x86_64"
UV_PLATFORM = "x86_64-manylinux_2_34"
NEVER = 'python_version < "3"'


def resolve(uv: str, build: EngineBuild, python: str) -> list[dict[str, Any]]:
    """The packages of a build with their files, as in a pylock.toml (PEP 751)."""
    with tempfile.TemporaryDirectory(prefix="qwen-align-locks-") as folder:
        overrides, lock = Path(folder, "overrides.txt"), Path(folder, "pylock.toml")
        overrides.write_text("".join(f"{name} ; {NEVER}\n" for name in build.left_out))
        command = [uv, "pip", "compile", "-", "--format", "pylock.toml", "--quiet", "--output-file", str(lock)]
        command += ["--python-version", python, "--python-platform", UV_PLATFORM, "--override", str(overrides)]
        command += [] if build.compiled else ["--no-build"]
        environment = dict(os.environ)
        if any("+cpu" in requirement for requirement in build.requirements):
            environment.setdefault("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))
        subprocess.run(command, input="\n".join(build.requirements), text=True, check=True, env=environment)
        packages: list[dict[str, Any]] = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    return packages


def format_lock(name: EngineName, device: Device, python: str, packages: list[dict[str, Any]]) -> str:
    """The text of a lock."""
    compiled = ENGINES[name][device].compiled
    lines = [f"# Engine {name} for {device}, {PLATFORM}, Python {python}. Written by `make engine_locks`."]
    for package in packages:
        files = [package["sdist"]] if package["name"] in compiled else package["wheels"]
        hashes = sorted({file["hashes"]["sha256"] for file in files})
        lines.append(
            " \\\n    ".join([f"{package['name']}=={package['version']}", *(f"--hash=sha256:{h}" for h in hashes)])
        )
    return "\n".join(lines) + "\n"


def main(uv: str, asked: list[str]) -> None:
    """Writes the locks of the engines that are asked for, or of all."""
    for name, builds in ENGINES.items():
        for device, build in builds.items() if not asked or name in asked else ():
            for python in build.pythons:
                path = FOLDER / format_lock_name(name, device, PLATFORM, python)
                path.write_text(format_lock(name, device, python, resolve(uv, build, python)), encoding="utf-8")
                print(f"written: {path}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

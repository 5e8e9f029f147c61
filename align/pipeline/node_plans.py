"""Compares the plans of a run's nodes: each plans the same recipe for itself, and has to come to the same stages."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import qwen_align
from qwen_align.align.pipeline.machine_check import count_nodes
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.pipeline.stage_job import build_stage_job
from qwen_align.align.store.files import to_canonical_json
from qwen_align.align.store.provenance import read_library_versions

_CODE = ("align", "data_builders", "reward", "cli.py")  # of the package's folder, which may hold tests and more


def list_shared_stages(stages: Sequence[PlannedStage]) -> list[PlannedStage]:
    """Lists the stages that run on several nodes."""
    return [stage for stage in stages if count_nodes(stage.stage) > 1]


def count_run_nodes(stages: Sequence[PlannedStage]) -> int:
    """Returns the number of nodes that stages need: those of the one with most."""
    return max((count_nodes(stage.stage) for stage in stages), default=1)


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Describes a plan as plain data: of each stage that runs on several nodes the key, folder and all it is told.

    With it what results depend on beside the plan: this package's code and the versions of libraries.
    """
    stages = {
        stage.name: {
            "key": stage.key,
            "folder": str(stage.folder.path.resolve()),
            "job": _digest(build_stage_job(stage)),
        }
        for stage in list_shared_stages(plan.stages)
    }
    versions = {**read_library_versions(), "python": ".".join(map(str, sys.version_info[:2]))}
    return {"run": plan.recipe.name, "stages": stages, "versions": versions, "code": compute_code_digest()}


def describe_difference(other: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Says in what a node's plan differs from node 0's own. Returns None where it is the same.

    What causes other differences comes first. `other` came over the network: any JSON.
    """
    if other.get("run") != own["run"]:
        return f"it runs '{other.get('run')}', and node 0 runs '{own['run']}'"
    if other.get("code") != own["code"]:
        return "its code of qwen-align is another than node 0's; install the same version on all nodes"
    versions = _get_mapping(other, "versions")
    odd = [
        f"{name} {versions.get(name)} (node 0: {ours})"
        for name, ours in own["versions"].items()
        if versions.get(name) != ours
    ]
    if odd:
        return f"it has other versions: {', '.join(odd)}"
    stages = _get_mapping(other, "stages")
    if set(stages) != set(own["stages"]):
        names = sorted(map(str, set(stages) ^ set(own["stages"])))
        return f"its recipe has other stages on several nodes ({', '.join(names)}); give the same recipe and --set"
    for name, ours in own["stages"].items():
        theirs = _get_mapping(stages, name)
        if theirs.get("key") != ours["key"]:
            return f"stage '{name}' has another key there: its settings, or files that it reads, differ from node 0's"
        if theirs.get("folder") != ours["folder"]:
            return (
                f"stage '{name}' is in {theirs.get('folder')} there and in {ours['folder']} on node 0; the home has to "
                "be the same shared folder at the same path"
            )
        if theirs.get("job") != ours["job"]:
            return f"stage '{name}' has another runtime, or other paths of what it reads, than on node 0"
    return None


def compute_code_digest() -> str:
    """Computes the SHA-256 of this package's Python files."""
    digest = hashlib.sha256()
    package = Path(str(qwen_align.__file__)).parent
    for name in _CODE:
        files = [package / name] if name.endswith(".py") else sorted((package / name).rglob("*.py"))
        for path in files:
            digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _get_mapping(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the mapping of a name, an empty one where there is none."""
    value = mapping.get(name)
    return value if isinstance(value, dict) else {}


def _digest(value: Any) -> str:
    return hashlib.sha256(to_canonical_json(value).encode()).hexdigest()

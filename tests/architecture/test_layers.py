"""The layers: who may import whom, who knows torch, transformers and TRL, and what starts without them."""

import ast
import fnmatch
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each may import the layers before it and its own.
LAYERS = (
    (
        "align.errors",
        "align.hub_kernels",
        "align.references",
        "align.settings.base",
        "align.settings.fault_wording",
        "align.settings.foreign_names",
        "align.settings.hub_revision",
        "align.settings.renamed",
        "align.stages.registry",
        "align.tested_versions",
    ),
    ("reward.verdict", "align.rows", "align.answer_modes"),
    ("reward.*", "reward"),
    ("data_builders.*", "data_builders"),
    ("align.settings.*",),
    (
        "align.context",
        "align.engines.*",
        "align.estimation.*",
        "align.evaluation.*",
        "align.models.extended_folder",
        "align.models.length_limit",
        "align.models.lora_targets",
        "align.models.model_description",
        "align.models.model_files",
        "align.models.rotary_scaling",
        "align.models.router_settings",
        "align.models.tensor_comparison",
        "align.models.tensor_table",
        "align.models.weight_check",
        "align.models.weight_headers",
        "align.models.weight_precision",
        "align.pipeline.graph",
        "align.rendering.*",
        "align.reporting.data_card",
        "align.reporting.markdown",
        "align.reporting.summary_line",
        "align.store.*",
    ),
    ("align.generation.*", "align.models.*", "align.training.*"),
    ("align.rl.*",),
    (
        "align.pipeline.deepspeed_operators",
        "align.pipeline.hub_revisions",
        "align.pipeline.machine_check",
        "align.pipeline.plan",
        "align.pipeline.preview",
        "align.pipeline.strategy_check",
    ),
    ("align.stages.*",),
    ("align.tracking.*",),
    ("align.commands.*", "align.doctor.*", "align.engines.install", "align.pipeline.*", "align.reporting.*"),
    ("align.api.*",),
    ("cli",),
)
# Whose __init__ holds no import.
PACKAGES = {"align", *(f"align.{path.parent.name}" for path in (ROOT / "align").glob("*/__init__.py"))}

# Who may import what takes seconds, wherever in the file; `align.worker` and `align.server` do it late.
HEAVY = {
    "torch": (
        "align.doctor.all_reduce_process",
        "align.engines.worker.*",
        "align.generation.*",
        "align.models.*",
        "align.pipeline.warm_server",
        "align.pipeline.worker",
        "align.rl.*",
        "align.stages.*",
        "align.tracking.to_tensorboard",
        "align.training.*",
    ),
    "transformers": (
        "align.generation.*",
        "align.models.*",
        "align.pipeline.warm_server",
        "align.rl.*",
        "align.stages.*",
        "align.training.*",
    ),
    "trl": ("align.pipeline.warm_server", "align.stages.*", "align.training.*"),
    "datasets": ("align.stages.*", "align.training.stored_rows", "data_builders.hub"),
    "accelerate": ("align.rl.trainer", "align.training.*"),
    "peft": ("align.models.*", "align.pipeline.warm_server", "align.rl.*", "align.stages.*"),
    "huggingface_hub": ("align.commands.push", "align.models.loading", "align.pipeline.hub_revisions"),
}
LATE = {
    "align.pipeline.worker": {"torch"},
    "align.tracking.to_tensorboard": {"torch"},
    "data_builders.hub": {"datasets"},
    "align.pipeline.warm_server": {"torch", "transformers", "trl", "peft"},
}


@cache
def modules() -> list[str]:
    folders = [ROOT / name for name in ("align", "reward", "data_builders")]
    paths = [ROOT / "cli.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)


def layer(module: str) -> int:
    for number, patterns in enumerate(LAYERS):
        if module in patterns:
            return number
    fitting = [n for n, patterns in enumerate(LAYERS) if any(fnmatch.fnmatch(module, one) for one in patterns)]
    assert len(fitting) == 1, f"{module} stands in {len(fitting)} layers: name it in LAYERS"
    return fitting[0]


@cache
def imports(module: str, *, late: bool = True) -> frozenset[str]:
    """Dotted names a module imports, those of this package without its name; `late`: inside functions too."""
    path = ROOT.joinpath(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    return frozenset(name.removeprefix("qwen_align.") for name in _names(tree, late=late))


def _names(tree: ast.AST, *, late: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not late:
            continue
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for one in node.names:
                inside = f"{node.module}.{one.name}"
                yield inside if _is_module(inside) else str(node.module)
        else:
            yield from _names(node, late=late)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.removeprefix("qwen_align.").split("."))
    return name.startswith("qwen_align.") and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


def ours(module: str, *, late: bool = True) -> set[str]:
    return {name for name in imports(module, late=late) if name in modules()}


@pytest.mark.parametrize("module", [name for name in modules() if name not in PACKAGES])
def test_a_module_imports_only_its_own_layer_and_those_before(module: str) -> None:
    above = {name: layer(name) for name in ours(module) if layer(name) > layer(module)}
    assert not above, f"{module} (layer {layer(module)}) imports what stands above it"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_nothing(package: str) -> None:
    assert not imports(package)


def test_no_module_needs_itself_to_be_imported() -> None:
    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        for name in ours(module, late=False) - finished:
            walk(name, (*path, module))
        finished.add(module)

    finished: set[str] = set()
    for module in modules():
        walk(module, ())


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_only_some_know_a_heavy_library(library: str) -> None:
    knowing = {name for name in modules() if library in {one.partition(".")[0] for one in imports(name)}}
    strangers = {name for name in knowing if not any(fnmatch.fnmatch(name, one) for one in HEAVY[library])}
    assert not strangers
    allowed = [one for one in HEAVY[library] if not any(fnmatch.fnmatch(name, one) for name in knowing)]
    assert not allowed, "listed, but does not import it"


def test_worker_and_server_import_heavy_libraries_late() -> None:
    for module, libraries in LATE.items():
        assert not libraries & {one.partition(".")[0] for one in imports(module, late=False)}


WITHOUT_TORCH = """
import json, sys
from qwen_align.cli import main
recipe, home = sys.argv[1:]
codes = [main([*command, "--home", home]) for command in (
    ["check", recipe], ["show", recipe, "sft"], ["report", recipe], ["schema"], ["recipes"], ["prune", "--dry-run"])]
import qwen_align.align.stages.build_data, qwen_align.align.pipeline.worker
import qwen_align.align.pipeline.warm_server, qwen_align.align.commands.progress
heavy = {"torch", "transformers", "trl", "datasets", "accelerate", "peft", "numpy", "pandas", "huggingface_hub",
         "sympy", "mpmath", "math_verify", "reasoning_gym", "langdetect", "jsonschema", "datasketch", "scipy"}
print(json.dumps({"codes": codes, "heavy": sorted(heavy & set(sys.modules))}), file=sys.stderr)
"""


def test_commands_that_train_nothing_start_without_torch(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    sampling = {"max_tokens": 8}
    builder = {"kind": "arithmetic", "rows": "trace", "n": 4, "steps": [1]}
    sft = {"max_tokens": 128, "batch": 1, "epochs": 1, "learning_rate": 1e-4}
    asked = {"kind": "evaluate", "from_data": ["questions"], "completions_per_prompt": 1, "sampling": sampling}
    stages = [
        {"name": "data", "kind": "build_data", "builder": builder},
        {"name": "questions", "kind": "build_data", "builder": {**builder, "rows": "problem"}},
        {"name": "sft", "kind": "sft", "from_model": "base", "from_data": ["data"], **sft},
        {"name": "after", "from_model": "sft", **asked},
    ]
    recipe = write_recipe(stages, models={"base": {"path": str(tiny_model)}})
    line = [sys.executable, "-c", WITHOUT_TORCH, str(recipe), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == {"codes": [0] * 6, "heavy": []}

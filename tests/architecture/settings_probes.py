"""What a setting changes, computed for real: each probe turns settings into something recorded that can be compared."""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from qwen_align.align.commands import check
from qwen_align.align.context import MEASURED, Context
from qwen_align.align.errors import RecipeError
from qwen_align.align.models.lora import build_lora_config
from qwen_align.align.pipeline import launcher, machine_check
from qwen_align.align.pipeline.check_models import check_models
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.rows import Problem, to_json_line
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.stages.registry import STAGE_KINDS, import_function
from qwen_align.align.tracking import setup
from qwen_align.reward.settings import RewardSettings
from tests.architecture.settings_rows import FILES, data_stages, make_completion, user

Settings = dict[str, Any]
CPU = {"device": "cpu", "micro_batch": 8, "generation_batch": 64}
# Names in stage folders that say how a run went, not what it made.
NOT_RECORDED = {"progress.json", "log.txt", "checkpoints"}


class World:
    """A folder with what stages read, and a probe for each thing that is recorded."""

    def __init__(self, folder: Path, tiny_model: Path) -> None:
        self.folder, self.n_runs = folder, 0
        self.inputs = {"base": tiny_model}
        for name, rows in data_stages().items():
            (folder / name).mkdir(parents=True)
            (folder / name / "rows.jsonl").write_text(
                "".join(f"{to_json_line(row)}\n" for row in rows), encoding="utf-8"
            )
            self.inputs[name] = folder / name

        for name, text in FILES.items():
            (folder / name).write_text(text, encoding="utf-8")
        shutil.copyfile(tiny_model / "tokenizer.json", folder / "tokenizer.json")

    def load_base(self) -> Any:
        """The base model as stages load it."""
        from qwen_align.align.models import loading

        return loading.load_model(self.inputs["base"])

    def scratch(self) -> Path:
        self.n_runs += 1
        made = self.folder / f"run{self.n_runs}"
        made.mkdir()
        return made

    def add_scorer(self) -> None:
        """Puts a reward model with a random head among the inputs."""
        if "scorer" in self.inputs:
            return
        import torch

        from qwen_align.align.models import loading, reward_scorer

        base, made = self.inputs["base"], self.folder / "scorer"
        model = reward_scorer.build_scorer_model(loading.load_model(base), loading.load_renderer(base).pad_id)
        torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
        model.save_pretrained(made)
        loading.copy_tokenizer_files(base, made)
        self.inputs["scorer"] = made

    # --- probes: settings -> what is recorded

    def stage(self, settings: Settings) -> Any:
        """The files and the summary of a stage that is run here."""
        if "scorer" in json.dumps(settings):
            self.add_scorer()
        spec = to_stage({"name": "stage", **settings})
        kind, out = STAGE_KINDS[spec.kind], self.scratch()
        context = Context(out, spec.seed or 0, Runtime.model_validate({**CPU, **(settings.get("runtime") or {})}))
        summary = import_function(kind.run)(spec, self.inputs, out, context)
        return {"summary": summary, "files": dict(digest_files(out))}

    def checked(self, settings: Settings) -> Any:
        """What `check` says of the stage in a recipe, lengths, limits and steps among it."""
        return [line for line in check.describe_plan(self.plan_stage(settings)) if "home:" not in line]

    def planned(self, settings: Settings) -> Any:
        """Key and inputs of the stage in a recipe."""
        (stage,) = self.plan_stage(settings).find_stages("stage")
        return {"key": stage.key, "seed": stage.seed, "targets": stage.targets}

    def plan_stage(self, settings: Settings) -> Plan:
        """The plan of a recipe with the data stages and this stage."""
        builders = [
            {
                "name": name,
                "kind": "build_data",
                "builder": {"kind": "local_file", "path": f"{name}/rows.jsonl", "rows": "typed"},
            }
            for name in self.inputs
            if name in ("problems", "other", "traces", "direct", "texts", "pairs", "more_pairs")
        ]
        models: Settings = {"base": {"path": str(self.inputs["base"])}, "second": {"shipped": "tiny_base"}}
        if "scorer" in json.dumps(settings):
            self.add_scorer()
            described = {"path": str(self.inputs["scorer"]), "is_scorer": True}
            models |= {"scorer": described, "second_scorer": described}
        return self.plan_recipe({"models": models, "stages": [*builders, {"name": "stage", **settings}]})

    def plan_recipe(self, recipe: Settings, **options: Any) -> Plan:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({"name": "trial", "runtime": {"device": "cpu"}} | recipe, sort_keys=False))
        (self.folder / "below.yaml").write_text(yaml.safe_dump({"name": "below", "stages": [DATA]}, sort_keys=False))
        return make_plan(path, self.folder, **options)

    def recipe(self, settings: Settings) -> Any:
        """Names, keys and runtimes of the stages that a recipe comes to, in order, and where its run lies."""
        settings = dict(settings)
        plan = self.plan_recipe(settings, tiny=settings.pop("--tiny", False))
        return {
            "run": plan.run_folder.name,
            "stages": [(one.name, one.key, one.runtime.model_dump(), one.targets) for one in plan.stages],
            "tracking": plan.recipe.tracking.model_dump(),
            "group": plan.group,
        }

    def model_with_adapter(self, settings: Settings) -> Any:
        """What is said of a model with an adapter beside it."""
        folder = self.folder / "adapted"
        if not folder.exists():
            shutil.copytree(self.inputs["base"], folder)
            (folder / "adapter_config.json").write_text("{}")
        models = {"m": {"path": str(folder), **settings}}
        plan = self.plan_recipe(
            {"models": models, "stages": [{**EVALUATION, "name": "s", "from_model": "m"}, PROBLEMS]}
        )
        try:
            return check_models(plan)
        except RecipeError as error:
            return str(error)

    def runtime(self, settings: Settings) -> Any:
        """What a stage's process is told of the recipe's runtime and its own."""
        plan = self.plan_recipe(settings)
        return [(one.name, one.runtime.model_dump()) for one in plan.stages]

    def report(self, settings: Settings) -> Any:
        """report.md of a recipe with three evaluations."""
        from qwen_align.align.reporting.report_files import write_report

        evaluations = [
            {**EVALUATION, "name": f"eval_{model}", "from_model": model} for model in ("base", "second", "third")
        ]
        models = {name: {"path": str(self.inputs["base"])} for name in ("base", "second", "third")}
        plan = self.plan_recipe({**settings, "models": models, "stages": [PROBLEMS, *evaluations]})
        for place, stage in enumerate(plan.find_stages(f"eval_{name}")[0] for name in models):
            store_evaluation(stage, accuracy=0.5 + place / 10)
        plan.run_folder.mkdir(parents=True, exist_ok=True)
        write_report(plan)
        return (plan.run_folder / "report.md").read_text()

    def arguments(self, settings: Settings) -> Any:
        """The arguments that TRL's trainer, or transformers', is given."""
        from qwen_align.align.training import trl_arguments

        spec = to_stage({"name": "stage", **settings})
        runtime, out = Runtime.model_validate({**CPU, **(settings.get("runtime") or {})}), self.folder / "arguments"
        if spec.kind == "grpo" and spec.trainer == "trl":
            made = trl_arguments.build_grpo_arguments(spec, spec.sampling.resolve_for_policy(), runtime, out, seed=0)
        elif spec.kind in ("grpo", "ppo"):
            made = trl_arguments.build_online_rl_arguments(spec, runtime, out, seed=0, has_unused_parameters=False)
        else:
            make: Callable[..., Any] = getattr(trl_arguments, f"build_{spec.kind}_arguments")
            made = make(spec, runtime, out, steps=9, seed=0)
        lora = build_lora_config(spec.lora, self.load_base()) if spec.lora else None
        return made.to_dict(), lora and {name: str(value) for name, value in sorted(lora.to_dict().items())}

    def arguments_on_a_gpu(self, settings: Settings) -> Any:
        """The arguments that all trainers are given where there is a GPU with TF32."""
        from unittest import mock

        import torch

        from qwen_align.align.training import trl_arguments

        spec = to_stage({"name": "stage", **settings})
        with (
            mock.patch.object(trl_arguments, "choose_device", return_value=torch.device("cuda", 0)),
            mock.patch.object(trl_arguments, "is_torch_tf32_available", return_value=True),
        ):
            return trl_arguments._build_common_arguments(spec, Runtime(), self.folder, steps=9, seed=0)

    def saved_tensors(self, runtime: Settings) -> Any:
        """Whether what a backward pass needs is moved to host memory."""
        from qwen_align.align.training.activation_offloading import offload_activations

        asked = Runtime.model_validate({**CPU, **runtime}).activation_offloading
        return type(offload_activations(self.load_base(), is_asked=asked)).__name__

    def base_dtypes(self, settings: Settings) -> Any:
        """The precisions of the weights that a stage trains on, or under its adapters."""
        from qwen_align.align.models import loading

        spec = loading.resolve_settings(to_stage({"name": "stage", **settings}), self.inputs["base"])
        return {str(weight.dtype) for weight in loading.load_model_to_train(self.inputs["base"], spec).parameters()}

    def routers(self, settings: Settings) -> Any:
        """What of a mixture of experts is trained, and the coefficient of its load-balancing loss."""
        from transformers import AutoConfig, AutoModelForCausalLM

        from qwen_align.align.models import loading, quantized_base
        from qwen_align.align.models.router_settings import resolve_router_settings

        folder, spec = self.folder / "mixture", to_stage({"name": "stage", **settings})
        if not folder.exists():
            sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
            experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 4, "vocab_size": 16}
            config = AutoConfig.for_model("qwen3_moe", **sizes, **experts)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        spec, runtime = loading.resolve_settings(spec, folder), Runtime.model_validate(CPU)
        model = quantized_base.load_for_training(folder, spec, runtime)
        found = resolve_router_settings(spec, model.config.to_dict(), runtime)
        return sorted(name for name, one in model.named_parameters() if one.requires_grad), found

    def loss(self, settings: Settings) -> Any:
        """Advantages, loss and gradients of online RL on fixed completions."""
        return compute_rl_loss(to_stage({"name": "stage", **settings}))

    def coefficients(self, settings: Settings) -> Any:
        """The KL's and the entropy's coefficients over steps in which both fall."""
        from qwen_align.align.rl.controllers import EntropyCoefficient, KlCoefficient

        spec = to_stage({"name": "stage", **settings})
        kl, entropy = KlCoefficient.from_settings(spec.kl), EntropyCoefficient.from_settings(spec.entropy)
        recorded = []
        for measured in (3.0, 1.5, 0.7, 0.3, 0.2, 0.1):
            kl.adapt(spec.kl, measured, n_completions=8)
            entropy.adapt(spec.entropy, measured)
            recorded.append((kl.value, entropy.effective_value))
        return recorded

    def alerts(self, settings: Settings) -> Any:
        """The watchdogs' alerts over steps that go wrong in every way."""
        return list_alerts(to_stage({"name": "stage", **settings}))

    def prompts(self, settings: Settings) -> Any:
        """The prompts of five passes, whose pass rates are told as they come."""
        return draw_prompts(to_stage({"name": "stage", **settings}))

    def request(self, settings: Settings) -> Any:
        """The prompt and the sampling that the engine is asked with."""
        from qwen_align.align.generation.requests import render_problem, resolve_sampling
        from qwen_align.align.rendering.renderer import Renderer

        spec, renderer = to_stage({"name": "stage", **settings}), Renderer.load(self.inputs["base"])
        switches = spec.thinking_switches if spec.kind == "evaluate" else [getattr(spec, "thinking_switch", None)]
        problem = Problem(id="p", messages=[user("What is 1 + 1?")], gold="2", reward="math_answer")
        asked = [render_problem(problem, renderer, switch) for switch in switches]
        if spec.kind in ("grpo", "ppo"):
            return spec.sampling.resolve_for_policy()
        return [(one.prompt.ids, resolve_sampling(one, renderer, spec.sampling)) for one in asked]

    def launch(self, runtime: Settings) -> Any:
        """How the process of a stage is started, and what it is told of the runtime."""
        from qwen_align.align.models.loading import choose_device

        plan = self.plan_stage({**SFT, "runtime": {**CPU, **runtime}})
        (stage,) = plan.find_stages("stage")
        with contextlib.suppress(AttributeError):
            stage = stage.stage  # type: ignore[assignment]
        line = launcher.build_command(stage, Path("folder"), Path("report"))  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                device = str(choose_device(stage.runtime))
            except ValueError as error:
                device = str(error)
        counts = machine_check.count_processes(stage), machine_check.count_nodes(stage)  # type: ignore[arg-type]
        return line[1:], launcher.uses_warm_server(stage), counts, device  # type: ignore[arg-type]

    def strategy_arguments(self, runtime: Settings) -> Any:
        """What DeepSpeed or FSDP2 is told. A file of the user's own is written where the runtime names one."""
        from qwen_align.align.training.strategies import build_strategy_arguments

        if "deepspeed" in runtime:
            file = self.folder / runtime["deepspeed"]
            file.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": True}}))
            runtime = {**runtime, "deepspeed": str(file)}
        return build_strategy_arguments(Runtime.model_validate(runtime), in_bf16=False)

    def engine_limits(self, runtime: Settings) -> Any:
        """How many rows the engine of a rollout decodes side by side, and what of cache and prompts it holds."""
        from qwen_align.align.generation.resumable import load_engine
        from qwen_align.align.models import loading

        base = self.inputs["base"]
        context = Context(self.folder, 0, Runtime.model_validate({**CPU, "kv_cache_gib": 1, **runtime}))
        engine = load_engine(base, loading.load_renderer(base), context)
        return engine.max_rows, engine._measure_limits(engine.model)

    def passes(self, runtime: Settings) -> Any:
        """Which rows of fixed lengths go into which forward pass."""
        from qwen_align.align.settings.pass_limits import get_pass_limits
        from qwen_align.align.training.micro_batches import plan_micro_batches

        limits = get_pass_limits(Runtime.model_validate({**CPU, **runtime}), "cpu")
        return plan_micro_batches([30, 7, 12, 25], limits, is_padded=False)

    def attention(self, runtime: Settings) -> Any:
        """The attention implementation of a model that is trained."""
        from qwen_align.align.models.attention_setting import set_attention

        model = self.load_base()
        set_attention(model, Runtime.model_validate({**CPU, **runtime}).attention, "cpu")
        return model.config._attn_implementation

    def worker_threads(self, runtime: Settings) -> Any:
        """How many threads torch has in the process that runs a stage."""
        import torch

        from qwen_align.align.pipeline import worker

        folder, before = self.scratch(), torch.get_num_threads()
        inputs = {name: {"folder": str(path)} for name, path in self.inputs.items()}
        settings = {**SFT, "name": "stage", "from_data": ["none"], "on_empty": "pass_through"}
        job = {
            "key": "k",
            "name": "stage",
            "settings": settings,
            "inputs": inputs,
            "seed": 0,
            "runtime": {**CPU, **runtime},
        }
        (folder / "stage.json").write_text(json.dumps(job))
        try:
            assert worker.run_stage(folder, folder / "report.json", started=0.0) == 0
            return torch.get_num_threads()
        finally:
            torch.set_num_threads(before)

    def engine(self, settings: Settings) -> Any:
        """Where vLLM is started, with what, and which servers are asked."""
        return record_engine(self.inputs["base"], self.scratch(), Runtime.model_validate({**CPU, "engine": settings}))

    def runtime_engine(self, runtime: Settings) -> Any:
        """The same of a whole runtime."""
        return record_engine(self.inputs["base"], self.scratch(), Runtime.model_validate({**CPU, **runtime}))

    def trackers(self, settings: Settings) -> Any:
        """What trackers are told, and where their curves are said to go."""
        tracking = Tracking.model_validate(settings)
        environment = {name: setup.build_tracker_environment(name, tracking, {"HF_TOKEN": "t"}) for name in tracking.to}
        plan = self.plan_recipe({"stages": [DATA], "tracking": settings})
        return (
            list(setup.describe_destinations(tracking, plan.group, Path("folder"))),
            environment,
            tracking.project,
            plan.group,
        )

    def rows(self, settings: Settings) -> Any:
        """The rows that a data stage makes, and what it drops; `given` holds data stages that it reads."""
        from qwen_align.align.stages import build_data

        given = {name: self.add_rows(name, rows) for name, rows in settings.get("given", {}).items()}
        stage = {name: value for name, value in settings.items() if name != "given"}
        spec = to_stage({"name": "stage", "kind": "build_data", **stage}, self.folder)
        out = self.scratch()
        summary = build_data.run(spec, self.inputs | given, out, Context(out, spec.seed or 0, Runtime()))
        return summary, dict(digest_files(out))

    def add_rows(self, name: str, rows: list[Settings]) -> Path:
        folder = self.scratch() / name
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return folder

    def hub(self, settings: Settings) -> Any:
        """What the hub's library is asked for, and the rows that come of it."""
        from unittest import mock

        rows = [{"question": "What is 1 + 1?", "answer": "2"}]
        with mock.patch("datasets.load_dataset_builder") as load:
            builder = load.return_value
            builder.hash = settings["builder"]["revision"]
            builder.as_streaming_dataset.return_value = builder.as_dataset.return_value = rows
            recorded = self.rows(settings)
        return recorded, [str(call) for call in load.mock_calls if "__" not in str(call)]

    def verdict(self, settings: Settings) -> Any:
        """The verdicts of a reward on completions of one prompt, alone and combined with those `beside` it."""
        from qwen_align.reward.combine import is_task_solved, judge_all

        described = [settings["reward"], *settings.get("beside", [])]
        rewards = TypeAdapter[Any](list[RewardSettings]).validate_python(
            described, context={"folder": str(self.folder)}
        )
        if "from_scorer" in settings["reward"]:
            from qwen_align.align.models import reward_scorer

            self.add_scorer()
            inputs = {**self.inputs, "scorer": self.inputs["scorer"]}
            reward_scorer.bind_scorers(rewards, inputs, Runtime(device="cpu"))
        group = [
            make_completion(
                "p", sample, None, "", text=text, n_tokens=len(text), gold=settings.get("gold", "2"), verdicts={}
            )
            for sample, text in enumerate(settings["texts"])
        ]
        alone = [verdict.model_dump() for verdict in rewards[0].judge_group(group)]
        together = judge_all(rewards, group)
        return alone, [(verdict.value, is_task_solved(rewards, verdict)) for verdict in together]

    def worker_memory(self, settings: Settings) -> list[str]:
        """The limits of address space of the worker processes that a reward's verdicts came from, in bytes."""
        before = _list_workers()
        self.verdict(settings)
        workers = _list_workers() - before
        limits = [Path(f"/proc/{pid}/limits").read_text().splitlines() for pid in workers]
        return sorted({line.split()[3] for lines in limits for line in lines if line.startswith("Max address space")})


def _list_workers() -> set[str]:
    """The process ids of all processes that descend from this one."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if folder.name.isdigit():
                parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
    found = {str(os.getpid())}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


DATA: Settings = {
    "name": "data",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]},
}
SFT: Settings = {
    "kind": "sft",
    "from_model": "base",
    "from_data": ["traces"],
    "max_tokens": 256,
    "batch": 4,
    "epochs": 1,
    "learning_rate": 1e-3,
}
PROBLEMS: Settings = {**DATA, "name": "problems"}
EVALUATION: Settings = {
    "kind": "evaluate",
    "from_data": ["problems"],
    "completions_per_prompt": 2,
    "sampling": {"temperature": 1.0, "max_tokens": 4},
}


def to_stage(settings: Settings, folder: Path | None = None) -> Any:
    return TypeAdapter[Any](AnyStage).validate_python(settings, context={"folder": str(folder)} if folder else None)


def digest_files(out: Path) -> Iterator[tuple[str, str]]:
    """(name, digest) of what a stage left, times aside."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if path.is_file() and name.parts[0] not in NOT_RECORDED:
            content = path.read_bytes()
            if name.name == "metrics.jsonl":
                lines = [json.loads(line) for line in content.decode().splitlines()]
                kept = [
                    {key: value for key, value in line.items() if "time" not in key and not key.startswith(MEASURED)}
                    for line in lines
                ]
                content = json.dumps(kept).encode()
            yield str(name), hashlib.sha256(content).hexdigest()


def store_evaluation(stage: Any, accuracy: float) -> None:
    """Writes the manifest of an evaluation that has run."""
    result = {"set": "problems", "switch": "default", "mode": None, "accuracy": accuracy, "stderr": 0.05, "k": 2}
    result |= {"mean_reward": accuracy, "mean_reward_stderr": 0.05, "no_verdict": 0}
    shares = dict.fromkeys(
        ("obeyed_share", "stopped_share", "mean_tokens", "pass_at_k", "maj_at_k", "answered_share", "format_share"), 0.5
    )
    folder = stage.folder.path
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"results": [{**result, **shares, "n_questions": 4, "mean_tokens_right": 3.0, "mean_tokens_wrong": 4.0}]}
    (folder / "questions.json").write_text(json.dumps({"means": [{f"q{n}": accuracy for n in range(4)}]}))
    manifest = {
        "summary": summary,
        "key": stage.key,
        "kind": "evaluate",
        "seconds": 1.0,
        "import_seconds": 1.0,
        "cpu_seconds": 1.0,
        "peak_rss_gib": 1.0,
        "disk_gib": 1.0,
        "outputs": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def compute_rl_loss(spec: Any) -> Any:
    """Advantages, returns, loss and gradients on two groups of three fixed completions."""
    import torch

    from qwen_align.align.rl.actor import Scores
    from qwen_align.align.rl.algorithm import build_grpo, build_ppo
    from qwen_align.align.rl.controllers import EntropyCoefficient, KlCoefficient, RewardScale
    from qwen_align.align.rl.micro_batches import MicroBatch, iterate_micro_batches
    from qwen_align.align.rl.objective import UpdateTerms, compute_loss, count_step_totals
    from qwen_align.align.rl.rollouts import Rollouts

    random = torch.Generator().manual_seed(0)
    n_tokens = torch.tensor([2, 1, 3, 2, 4, 2, 3, 1, 2])
    n, size = int(n_tokens.sum()), len(n_tokens)

    def draw(scale: float) -> Any:
        return scale * torch.randn(n, generator=random)

    rollouts = Rollouts(
        ids=torch.zeros(n + size).long(),
        n_prompt=torch.ones(size).long(),
        n_tokens=n_tokens,
        group=torch.arange(size) // 3,
        reward=torch.tensor([1.0, 0.0, 0.5, 3.0, 2.0, 2.5, 1.0, 1.0, 1.0]),
        truncated=torch.zeros(size, dtype=torch.bool),
        old_logps=-1 + draw(0.5),
        sampled_logps=-1 + draw(0.9),
        counts=torch.ones(size, dtype=torch.bool),
        advantages=torch.zeros(n),
        reference_logps=-1 + draw(0.5),
        values=draw(0.5),
    )
    kl, entropy = KlCoefficient.from_settings(spec.kl), EntropyCoefficient.from_settings(spec.entropy)
    algorithm = build_ppo(spec) if spec.kind == "ppo" else build_grpo(spec)
    algorithm.assign_advantages(rollouts, kl.value, RewardScale())
    kept = rollouts.select_trained_rows(without_signal=algorithm.trains_without_advantage)
    (batch,) = iterate_micro_batches(rollouts, kept, max_rows=size)
    assert isinstance(batch, MicroBatch)
    shape = rollouts.pad_tokens(rollouts.old_logps, batch.rows).shape
    logps = (
        rollouts.pad_tokens(rollouts.old_logps, batch.rows) + 0.4 * torch.randn(shape, generator=random)
    ).requires_grad_()
    values = torch.randn(shape, generator=random).requires_grad_()
    entropies = torch.rand(shape, generator=random).requires_grad_()
    is_ppo = spec.kind == "ppo"
    terms = UpdateTerms(False, True, is_ppo, kl.value, entropy.effective_value)
    totals = count_step_totals(rollouts, batch.rows, spec.sampling.max_tokens)
    loss, _ = compute_loss(
        Scores(logps, entropies, values if is_ppo else None), batch, rollouts, totals, terms, algorithm
    )
    gradients = torch.autograd.grad(loss, [logps, values, entropies], allow_unused=True)
    recorded = [rollouts.advantages, loss.detach(), *gradients, rollouts.returns]
    return [None if one is None else one.tolist() for one in recorded]


def list_alerts(spec: Any) -> Any:
    """(step, watchdog) of every alert, and what stopped the stage."""
    from qwen_align.align.errors import StageError
    from qwen_align.align.rl.watchdogs import FIRST_STEPS, Watchdogs

    watchdogs = Watchdogs(spec.watchdogs)
    sound = {
        "reward": 0.5,
        "entropy": 1.0,
        "completions/mean_tokens": 100.0,
        "completions/clipped_share": 0.0,
        "completions/no_verdict_share": 0.0,
        "groups/no_signal_share": 0.0,
        "policy/kl": 0.0,
        "mismatch/mean": 0.0,
    }
    wrong = {
        "completions/clipped_share": 0.7,
        "completions/no_verdict_share": 0.7,
        "groups/no_signal_share": 0.95,
        "policy/kl": 2.0,
        "mismatch/mean": 0.1,
        "entropy": 0.05,
        "completions/mean_tokens": 400.0,
    }
    heard: list[Any] = []
    try:
        for step in range(1, FIRST_STEPS + 1):
            watchdogs.check_step(step, sound)
        for name, value in wrong.items():
            for step in range(FIRST_STEPS + 1, FIRST_STEPS + 5):
                heard += [(one.step, one.watchdog) for one in watchdogs.check_step(step, {**sound, name: value})]
        watchdogs.check_held_out(20, 0.8, 0.05)
        watchdogs.check_step(21, {**sound, "reward": 0.9})
        heard += [(one.step, one.watchdog) for one in watchdogs.check_held_out(22, 0.6, 0.05)]
    except StageError as error:
        heard.append(str(error))
    return heard


def draw_prompts(spec: Any) -> list[str]:
    """The ids of five passes over eight prompts of rising pass rates."""
    from qwen_align.align.generation.requests import RenderedProblem
    from qwen_align.align.rendering.renderer import Prompt
    from qwen_align.align.rl.prompt_stream import PromptStream

    problems = [
        Problem(
            id=f"p{n}", messages=[user(str(n))], gold="1", reward="math_answer", meta={"solved": n / 8, "often": 1.0}
        )
        for n in range(8)
    ]
    asked = [RenderedProblem(problem, None, None, Prompt([1], thinking_prefix="")) for problem in problems]
    stream = PromptStream(asked, spec.prompt_sampler, 0)
    drawn = []
    for _ in range(40):
        (one,) = stream.take_prompts(1)
        drawn.append(one.rendered.problem.id)
        if not (spec.prompt_sampler.kind == "pass_rate" and spec.prompt_sampler.pass_rate_column):
            stream.record_pass_rate(one.rendered.problem.id, int(one.rendered.problem.id[1:]) / 7)
    return drawn


def record_engine(base: Path, folder: Path, runtime: Runtime) -> Any:
    """The servers that an engine starts, with their arguments, and those that it asks."""
    from unittest import mock

    from qwen_align.align.engines.vllm_server import list_server_arguments
    from qwen_align.align.generation import vllm
    from qwen_align.align.models import loading

    started: list[Any] = []

    @contextlib.contextmanager
    def record_servers(model: Any, places: Any, logs: Path, *, time_limit_s: float, report: Any) -> Iterator[list[str]]:
        started.extend([*(list_server_arguments(model, place) for place in places), places, time_limit_s])
        yield ["http://started"]

    request, context = vllm.EngineRequest("fp32", 32, [1, 2], trains=True), Context(folder, 0, runtime)
    with (
        mock.patch.object(vllm, "run_servers", record_servers),
        mock.patch.object(vllm, "_check_servers"),
        vllm.open_vllm_engine(base, loading.load_renderer(base), context, request) as engine,
    ):
        return started, engine.client.urls, engine.can_sleep

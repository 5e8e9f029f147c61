"""Implements the command `qwen-align`: parses arguments, prints results and sets the exit code.

Each command imports what it needs.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_align import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from qwen_align.align.pipeline.plan import Plan

EXIT_CODES = """exit codes:
  0 ok   2 recipe wrong   3 data wrong or empty   4 a stage failed   75 preempted, run again to go on

examples:
  qwen-align recipes                                          the shipped recipes
  qwen-align recipes first_sft > my.yaml                      copy one
  qwen-align recipes extraction --to FOLDER                   copy one with all files that it needs
  qwen-align check my.yaml                                    what would run, before anything is trained
  qwen-align run my.yaml                                      run it, or go on where it stopped
  qwen-align run my.yaml --set stages.grpo.learning_rate=1e-6
  qwen-align runs                                             what has run, when, and how far it is
  qwen-align show my.yaml sft                                 tokens and loss mask of what a stage trains on
  qwen-align chat my.yaml sft                                 chat with the model a stage made
  qwen-align score rows.jsonl --reward math_answer --out scored.jsonl
  qwen-align audit reward my_reward.py:judge                  which wrong completions does it pay for?
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal has no ± and no …
    parsed = _build_parser().parse_args(arguments)
    if parsed.command is None:
        _build_parser().print_help()
        return 0
    from qwen_align.align.commands import output
    from qwen_align.align.errors import AlignError

    output.prepare_streams()
    console = output.OutputConsole(goes_on=parsed.command is _run_recipe)
    try:
        with output.end_on_signals():
            code = int(parsed.command(parsed, console) or 0)
        sys.stdout.flush()
        return code
    except AlignError as error:
        output.print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        output.print_error("stopped")
        return 130
    except BrokenPipeError:  # of a command whose reader has what it wanted: `qwen-align show ... | head`
        output.drop_output()
        return 0
    except OSError as error:
        output.print_error(f"{error.filename or 'input or output'}: {error.strerror or error}")
        output.drop_output()
        return 4
    except Exception as error:  # noqa: BLE001 - the last resort: nobody is shown a traceback
        output.print_error(output.describe_unexpected_error(error))
        return 4


def _run_recipe(parsed: argparse.Namespace, console: "Console") -> int:
    """Runs a recipe, prints its results and returns the exit code."""
    from qwen_align.align.commands import next_steps, remembered_plan
    from qwen_align.align.commands.progress import RunProgress, stop_on_signals
    from qwen_align.align.errors import Preempted
    from qwen_align.align.pipeline.coordinator import NODE_WAIT_S
    from qwen_align.align.pipeline.follower import follow
    from qwen_align.align.pipeline.node_place import find_rendezvous
    from qwen_align.align.pipeline.node_plans import count_run_nodes
    from qwen_align.align.reporting.live_report import run_and_report
    from qwen_align.align.reporting.terminal import print_results_table

    plan = _make_plan(parsed)
    is_needed = bool(parsed.force) or count_run_nodes([stage for stage in plan.stages if not stage.is_stored]) > 1
    rendezvous = find_rendezvous(
        count_run_nodes(plan.stages), parsed.node_rank, parsed.rendezvous, os.environ, is_needed=is_needed
    )
    if rendezvous and rendezvous.node > 0:
        with stop_on_signals() as stop:
            follow(
                plan,
                rendezvous,
                lambda message: console.print(message, soft_wrap=True),
                wait_s=parsed.node_wait or NODE_WAIT_S,
                is_forced=bool(parsed.force),
                stop=stop,
            )
        return 0
    if note := remembered_plan.note_other_run(plan):
        console.print(note, soft_wrap=True)
    with RunProgress(console, plan) as progress, stop_on_signals() as stop:
        try:
            results = run_and_report(
                plan,
                progress,
                force=parsed.force,
                same_versions=parsed.same_versions,
                stop=stop,
                rendezvous=rendezvous,
                node_wait_s=parsed.node_wait or NODE_WAIT_S,
            )
        except Preempted as error:
            raise Preempted(f"{error}\nnext: {next_steps.format_go_on(plan, parsed.recipe)}") from None
    if results.ladder or results.controls:
        print_results_table(console, results)
    for line in next_steps.describe_outcome(plan, parsed.recipe):
        console.print(line, soft_wrap=True)
    return 0


def _write_launch_script(parsed: argparse.Namespace, console: "Console") -> int:
    """Writes a script that starts a run on several nodes and returns the exit code."""
    from qwen_align.align.commands import launch
    from qwen_align.align.errors import RecipeError
    from qwen_align.align.pipeline.node_place import DEFAULT_PORT

    plan = _make_plan(parsed)
    command = launch.build_command(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny)
    if parsed.slurm:
        if parsed.port is not None:
            raise RecipeError("--port: goes with --hosts; under Slurm the port follows from the job's number")
        script = launch.write_slurm_script(plan, command, parsed.sbatch)
    else:
        if parsed.sbatch:
            raise RecipeError("--sbatch: goes with --slurm")
        script = launch.write_ssh_script(plan, command, parsed.hosts, parsed.port or DEFAULT_PORT)
    if parsed.to:
        launch.write_script(parsed.to, script)
        console.print(f"written: {parsed.to} (untested on hardware: read it before it runs)", soft_wrap=True)
    else:
        sys.stdout.write(script)
    return 0


def _make_plan(parsed: argparse.Namespace) -> "Plan":
    """Plans the recipe of a command that takes one. The folder of a run stands for its recipe as it was run."""
    from qwen_align.align.pipeline.plan import plan as make_plan

    if parsed.recipe.is_dir():
        from qwen_align.align.commands.remembered_plan import plan_as_last_run

        return plan_as_last_run(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny).plan
    return make_plan(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny)


def _make_plan_of_last_run(parsed: argparse.Namespace, console: "Console") -> "Plan":
    """Plans the recipe of a command that looks at a run, as it was last run. What has to be said of it is printed."""
    from qwen_align.align.commands.remembered_plan import plan_as_last_run

    plan, note = plan_as_last_run(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny)
    if note:
        console.print(f"note: {note}", soft_wrap=True)
    return plan


def _check_recipe(parsed: argparse.Namespace, console: "Console") -> int:
    """Prints what a run of a recipe would do and returns the exit code."""
    if parsed.gpu is not None or parsed.gpus is not None:
        return _check_device(parsed, console)
    for option in ("prompt_tokens", "tflops", "price"):
        if getattr(parsed, option) is not None:
            from qwen_align.align.errors import RecipeError

            raise RecipeError(f"--{option.replace('_', '-')}: goes with --gpu or --gpus, which say the card")
    from qwen_align.align.commands import check

    plan = _make_plan(parsed)
    for line in check.describe_plan(plan, runs_code=not parsed.no_code):
        console.print(line, soft_wrap=True)
    return 0


def _check_device(parsed: argparse.Namespace, console: "Console") -> int:
    """Prints what a recipe's stages need on GPUs and returns the exit code."""
    import gc

    gc.disable()  # a tenth of the command's second, which goes into imports
    try:
        from qwen_align.align.commands import device_check

        question = device_check.build_question(
            parsed.gpu,
            parsed.gpus,
            prompt_tokens=parsed.prompt_tokens,
            tflops=parsed.tflops,
            price_per_hour=parsed.price,
        )
        for line in device_check.describe_device_use(_make_plan(parsed), question):
            console.print(line, soft_wrap=True)
    finally:
        gc.enable()
    return 0


def _show_rows(parsed: argparse.Namespace, console: "Console") -> int:
    """Prints rows of a stage with their loss mask and returns the exit code."""
    from qwen_align.align.commands import show

    plan = _make_plan_of_last_run(parsed, console)
    for line in show.render_stage_rows(plan, parsed.stage, rows=parsed.rows, first=parsed.first):
        console.print(line if console.is_terminal else show.mark_trained_text(line), soft_wrap=True, markup=False)
    return 0


def _print_report(parsed: argparse.Namespace, console: "Console") -> int:
    """Writes and prints the report of a recipe and returns the exit code."""
    from qwen_align.align.reporting.report_files import write_report
    from qwen_align.align.reporting.terminal import print_results_table

    plan = _make_plan_of_last_run(parsed, console)
    results = write_report(plan)
    if not plan.run_folder.exists():
        console.print(f"{plan.run_folder}: nothing has run yet: `qwen-align run {parsed.recipe}`", soft_wrap=True)
        return 0
    if results.ladder or results.controls:
        print_results_table(console, results)
    console.print(f"page:   {plan.run_folder / 'report.html'}", soft_wrap=True)
    console.print(f"report: {plan.run_folder / 'report.md'}", soft_wrap=True)
    return 0


def _chat_with_model(parsed: argparse.Namespace, console: "Console") -> int:
    """Runs a chat with the model of a stage and returns the exit code."""
    from qwen_align.align.commands import chat
    from qwen_align.align.generation.local import open_local_engine
    from qwen_align.align.models import loading
    from qwen_align.align.settings.runtime import Runtime

    sampling = chat.build_sampling_settings(
        temperature=parsed.temperature, top_p=parsed.top_p, top_k=parsed.top_k, max_tokens=parsed.max_tokens
    )
    folder = chat.find_model_folder(_make_plan_of_last_run(parsed, console), parsed.stage)
    renderer = loading.load_renderer(folder)
    runtime = Runtime()
    engine = open_local_engine(loading.load_model(folder).to(loading.choose_device(runtime)), renderer, runtime)
    conversation = chat.Conversation(engine, renderer, sampling, seed=parsed.seed, mode=parsed.mode)
    console.print(f"{parsed.stage}: /quit ends, /help lists the commands", style="dim")
    chat.run_chat(
        conversation,
        input,
        lambda text, is_thinking: console.print(
            text, end="", style="dim italic" if is_thinking else "", soft_wrap=True
        ),
        lambda text: console.print(text, style="dim", soft_wrap=True),
    )
    return 0


def _print_recipes(parsed: argparse.Namespace, console: "Console") -> int:
    """Prints the list of shipped recipes, or the text of one of them."""
    from qwen_align.align.commands import shipped_recipes
    from qwen_align.align.errors import RecipeError

    if parsed.name and parsed.to:
        for path in shipped_recipes.copy_recipe(parsed.name, parsed.to):
            console.print(f"written: {path}", soft_wrap=True)
        for need in shipped_recipes.list_missing(parsed.name):
            console.print(f"needs, and does not come with it: {need}", soft_wrap=True)
        return 0
    if parsed.to:
        raise RecipeError("--to FOLDER: say which recipe is to be copied: qwen-align recipes NAME --to FOLDER")
    if parsed.name:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # a recipe's text is UTF-8, wherever it goes
        sys.stdout.write(shipped_recipes.read_recipe(parsed.name))
        if companions := shipped_recipes.list_companions(parsed.name):
            how = f"`qwen-align recipes {parsed.name} --to FOLDER` copies all"
            print(f"it needs {', '.join(companions)} beside it: {how}", file=sys.stderr)
        return 0
    for name, sentence in shipped_recipes.list_recipes():
        console.print(f"{name:<14} {sentence}", soft_wrap=True)
    return 0


def _print_runs(parsed: argparse.Namespace, console: "Console") -> int:
    """Prints the runs of the home folder and returns the exit code."""
    from qwen_align.align.commands.run_list import describe_runs

    lines = list(describe_runs(parsed.home))
    for line in lines or [f"{parsed.home / 'runs'}: nothing has run yet"]:
        console.print(line, soft_wrap=True)
    return 0


def _print_schema(parsed: argparse.Namespace, console: "Console") -> int:
    """Prints the JSON Schema of recipes and returns the exit code."""
    import json

    from qwen_align.align.settings.recipe import Recipe

    sys.stdout.write(json.dumps(Recipe.model_json_schema(), indent=1) + "\n")
    return 0


def _build_data(parsed: argparse.Namespace, console: "Console") -> int:
    """Builds one data set from a settings file, prints its counts and returns the exit code."""
    from qwen_align.align.commands import build

    settings = build.load_build_settings(parsed.spec, parsed.set)
    with build.show_progress(console) as report:
        summary = build.build_data_folder(
            settings, parsed.out, report, lambda message: print(f"note: {message}", file=sys.stderr, flush=True)
        )
    console.print(f"{summary['rows']:,} rows written: {parsed.out}", soft_wrap=True)
    for reason, count in summary["dropped"].items():
        console.print(f"{count:>9,}  dropped: {reason}", soft_wrap=True)
    converted = summary.get("conversion", {})
    if converted:
        console.print(f"format: {converted['format']}{' (recognised)' if converted['recognised'] else ''}")
    for column, count in converted.get("columns_left_out", {}).items():
        console.print(f"{count:>9,}  rows' column left out: {column}", soft_wrap=True)
    for line in summary["revisions"]:
        console.print(f"note: {line}", soft_wrap=True)
    return 0


def _push_data(parsed: argparse.Namespace, console: "Console") -> int:
    """Uploads a built data set to the Hugging Face hub and returns the exit code."""
    from qwen_align.align.commands.push import push_data_folder

    console.print(f"pushed: {push_data_folder(parsed.folder, parsed.to, private=parsed.private)}", soft_wrap=True)
    return 0


def _score_file(parsed: argparse.Namespace, console: "Console") -> int:
    """Judges a file of completions with a reward, prints the counts and returns the exit code."""
    from rich.progress import Progress, TextColumn

    from qwen_align.align.commands.score import score_file
    from qwen_align.align.settings.recipe_file import parse_overrides
    from qwen_align.reward.settings import parse_reward

    reward = parse_reward(parsed.reward, dict(parse_overrides(parsed.set)))
    with Progress(TextColumn("{task.completed:,.0f} rows judged"), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        scored = score_file(parsed.rows, parsed.out, reward, lambda rows: bar.update(task, completed=rows))
    mean = "none" if scored.mean is None else f"{scored.mean:.4f}"
    console.print(f"{scored.rows:,} rows, mean value {mean}, without a verdict: {scored.n_without_verdict:,}")
    for reason, count in scored.reasons.items():
        console.print(f"{count:>9,}  {reason}", soft_wrap=True)
    console.print(f"written: {parsed.out}", soft_wrap=True)
    return 0


def _audit_reward(parsed: argparse.Namespace, console: "Console") -> int:
    """Prints a reward's verdicts on golden and adversarial completions.

    Returns exit code 4 if one is judged wrongly.
    """
    from rich.table import Table

    from qwen_align.align.rows import Problem, read_rows, require_row_type
    from qwen_align.align.settings.recipe_file import parse_overrides
    from qwen_align.reward.audit import audit_reward
    from qwen_align.reward.settings import parse_reward

    reward = parse_reward(parsed.reward, dict(parse_overrides(parsed.set)))
    reward.check_machine()
    problems = list(require_row_type(Problem, read_rows(parsed.rows)))[: parsed.first] if parsed.rows else []
    findings = audit_reward(reward, problems)
    table = Table("", "completion", "value", "reason", box=None, pad_edge=False)
    for finding in findings:
        is_silent = finding.verdict.value is None and finding.pays is None
        sign = "none" if is_silent else "paid" if finding.is_paid and not finding.pays else "ok"
        sign = "wrong" if finding.is_wrong else sign
        value = "none" if finding.verdict.value is None else f"{finding.verdict.value:g}"
        table.add_row(sign, finding.probe, value, finding.verdict.reason)
    console.print(table)
    if not any(finding.verdict.value is not None for finding in findings):
        console.print("it has no verdict on any completion")
        return 4
    n_wrong = sum(finding.is_wrong for finding in findings)
    n_paid = sum(finding.is_paid and finding.pays is None for finding in findings)
    console.print(f"{len(findings)} completions: {n_wrong} judged wrongly, {n_paid} paid that solve nothing")
    return 4 if n_wrong else 0


def _check_machine(parsed: argparse.Namespace, console: "Console") -> int:
    """Prints the findings of the machine checks. Returns exit code 4 if one of them prevents a run."""
    from qwen_align.align.commands import doctor

    scope = doctor.build_scope(
        parsed.nodes, parsed.node_rank, parsed.rendezvous, os.environ, with_network=not parsed.no_network
    )
    findings = []
    for finding in doctor.examine_machine(parsed.home, scope):
        findings.append(finding)
        if not parsed.json:
            console.print(finding.format_line(), soft_wrap=True)
    if parsed.json:
        sys.stdout.write(doctor.format_json(findings) + "\n")
    return 4 if any(finding.is_bad for finding in findings) else 0


def _manage_engines(parsed: argparse.Namespace, console: "Console") -> int:
    """Lists, installs or removes engines in environments of their own and returns the exit code."""
    from qwen_align.align.commands import engines

    def say(message: str) -> None:
        console.print(message, soft_wrap=True)

    engines.check_options(parsed.action, parsed.name, parsed.device, parsed.python)
    if parsed.action == "list":
        for line in engines.describe_engines():
            say(line)
    elif parsed.action == "install":
        engines.install(parsed.name, parsed.device or "auto", parsed.python, console, say)
    else:
        engines.remove(parsed.name, say)
    return 0


def _prune_store(parsed: argparse.Namespace, console: "Console") -> int:
    """Deletes stored stages that no run links to and prints the freed space."""
    from qwen_align.align.store import prune

    def print_kept(message: str) -> None:
        console.print(f"left alone: {message}", soft_wrap=True)

    def print_note(message: str) -> None:
        console.print(f"note: {message}", soft_wrap=True)

    is_any = False
    for folder, gib in prune.prune_store(parsed.home, dry_run=parsed.dry_run, report_kept=print_kept, say=print_note):
        is_any = True
        console.print(f"{'would free' if parsed.dry_run else 'freed'} {gib:8.3f} GiB  {folder}", soft_wrap=True)
    if not is_any:
        console.print("nothing to delete: a run links to every stored stage (`qwen-align runs`)", soft_wrap=True)
    return 0


def _parse_count(text: str) -> int:
    """Parses a whole number above 0. Raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}': a whole number above 0 is needed")
    return int(text)


def _parse_amount(text: str) -> float:
    """Parses a number above 0. Raises ArgumentTypeError for anything else, infinity and NaN too."""
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    if not 0 < amount < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}': a number above 0 is needed")
    return amount


def _build_parser() -> argparse.ArgumentParser:
    """Builds the argument parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="qwen-align",
        description="Post-training of Qwen models from one recipe: data, SFT, DPO, GRPO, fusion, evaluation.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=f"qwen-align {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _add_command(commands, "run", _run_recipe, "run a recipe, or go on where it stopped", recipe=True)
    run.add_argument("--force", metavar="STAGE", action="append", default=[], help="recompute this stage; repeatable")
    run.add_argument("--same-versions", action="store_true", help="refuse results of other major library versions")
    run.add_argument("--node-rank", type=int, metavar="K", help="of several nodes (runtime.nodes): this one's number")
    run.add_argument("--rendezvous", metavar="HOST:PORT", help="of several nodes: where node 0 listens for the others")
    run.add_argument(
        "--node-wait",
        type=_parse_amount,
        metavar="SECONDS",
        help="of several nodes: how long the others wait for one that is not there (default 900)",
    )
    started = _add_command(
        commands, "launch", _write_launch_script, "write a script that starts a run on several nodes", recipe=True
    )
    how = started.add_mutually_exclusive_group(required=True)
    how.add_argument("--slurm", action="store_true", help="a batch script for sbatch")
    how.add_argument("--hosts", metavar="A,B", help="a script that starts it on these hosts over SSH; A is node 0")
    started.add_argument(
        "--sbatch", metavar="OPTION=VALUE", action="append", default=[], help="with --slurm: such as time=24:00:00"
    )
    started.add_argument("--port", type=_parse_count, help="with --hosts: where node 0 listens (default 29400)")
    started.add_argument("--to", type=Path, metavar="FILE", help="write it there, in the place of printing it")
    check = _add_command(
        commands, "check", _check_recipe, "validate a recipe and report what would run; nothing is trained", recipe=True
    )
    check.add_argument("--no-code", action="store_true", help="do not run the recipe's own Python files to try them")
    check.add_argument("--gpu", metavar="SIZE", help="estimate memory, time and disk on one GPU, such as 24GB")
    check.add_argument("--gpus", metavar="NxSIZE", help="the same for several GPUs of one machine, such as 8x80GB")
    check.add_argument(
        "--prompt-tokens", type=_parse_count, metavar="N", help="with --gpu: tokens of the longest prompt"
    )
    check.add_argument(
        "--tflops", type=_parse_amount, metavar="X", help="with --gpu: the card's dense bf16 peak in TFLOP/s"
    )
    check.add_argument("--price", type=_parse_amount, metavar="X", help="with --gpu: price of a GPU for an hour")
    show = _add_command(commands, "show", _show_rows, "tokens and loss mask of a stage's rows", recipe=True)
    show.add_argument("stage", help="a data stage, or a stage that trains on data")
    show.add_argument("--rows", type=int, default=3, help="how many rows (default 3)")
    show.add_argument("--first", type=int, default=0, help="skip so many rows first")
    _add_command(commands, "report", _print_report, "write and print the report of what is done so far", recipe=True)
    chat = _add_command(commands, "chat", _chat_with_model, "chat with a stage's model in the terminal", recipe=True)
    chat.add_argument("stage", help="a stage that makes a model, or a name under models")
    chat.add_argument("--mode", choices=["think", "no_think"], help="of the first turn (default: the model's own)")
    chat.add_argument("--max-tokens", type=int, default=2048, help="at most, of an answer (default 2048)")
    chat.add_argument("--temperature", type=float, help="default: what Qwen3 recommends for the mode")
    chat.add_argument("--top-p", type=float, help="default: as for --temperature")
    chat.add_argument("--top-k", type=int, help="default: as for --temperature")
    chat.add_argument("--seed", type=int, default=0, help="the same seed and messages get the same answers")
    _add_command(commands, "runs", _print_runs, "list the runs: when, how far, of which recipe with which changes")
    recipes = _add_command(commands, "recipes", _print_recipes, "list the shipped recipes, print one, or copy it")
    recipes.add_argument("name", nargs="?", help="print this recipe, to save and change it")
    recipes.add_argument("--to", type=Path, metavar="FOLDER", help="copy it there with all files that it needs")
    _add_command(commands, "schema", _print_schema, "JSON Schema of a recipe, for editors")
    build = _add_command(commands, "build", _build_data, "build one data stage alone, with a card of what it holds")
    build.add_argument("spec", type=Path, help="the stage's settings (YAML): builder, sieve, limit, seed")
    build.add_argument(
        "--out", type=Path, required=True, help="a new folder for rows.jsonl, dropped.jsonl and the data card"
    )
    push = _add_command(commands, "push", _push_data, "upload built data with their card to the Hugging Face hub")
    push.add_argument("folder", type=Path, help="what `build` wrote, or a data stage's folder under store/")
    push.add_argument("--to", required=True, metavar="OWNER/NAME", help="the data set on the hub; created if missing")
    push.add_argument("--private", action="store_true", help="create the data set as private")
    score = _add_command(commands, "score", _score_file, "judge a file of completions and golds")
    score.add_argument("rows", type=Path, help="completions (or text) and golds: JSON Lines, JSON, CSV, Parquet")
    score.add_argument("--reward", required=True, metavar="REWARD", help="a kind, or my_reward.py:function")
    score.add_argument("--out", type=Path, required=True, help="the same rows with value and reason")
    audit = _add_command(
        commands, "audit", _audit_reward, "judge golden and adversarial completions with a reward, to see what it pays"
    )
    audit.add_argument("what", choices=["reward"], help="what to audit")
    audit.add_argument("reward", metavar="REWARD", help="a kind, or my_reward.py:function")
    audit.add_argument("--rows", type=Path, help="also against these problems (rows.jsonl of a data stage)")
    audit.add_argument("--first", type=int, default=4, help="how many of the problems (default 4)")
    for command in (build, score, audit):
        command.add_argument(
            "--set", metavar="SETTING=VALUE", action="append", default=[], help="change a setting; repeatable"
        )
    doctor = _add_command(
        commands,
        "doctor",
        _check_machine,
        "check this machine, or several nodes: libraries, devices and what fits them, sandbox, home, connections",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument(
        "--no-network", action="store_true", help="have no processes exchange sums, which takes longest"
    )
    doctor.add_argument("--nodes", type=_parse_count, metavar="N", help="several nodes: how many (default 2)")
    doctor.add_argument("--node-rank", type=int, metavar="K", help="of several nodes: this one's number")
    doctor.add_argument("--rendezvous", metavar="HOST:PORT", help="of several nodes: where node 0 listens")
    engines = _add_command(
        commands, "engines", _manage_engines, "list, install or remove engines in Python environments of their own"
    )
    engines.add_argument("action", choices=["list", "install", "remove"], help="what to do")
    engines.add_argument("name", nargs="?", help="vllm, llmcompressor or llama_cpp")
    engines.add_argument("--device", choices=["auto", "cpu", "cuda"], help="install: for what device (default auto)")
    engines.add_argument("--python", type=Path, help="install: with this interpreter (default: the one that runs this)")
    prune = _add_command(commands, "prune", _prune_store, "delete stored stages that no run links to")
    prune.add_argument("--dry-run", action="store_true", help="only list what would be deleted")
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    function: object,
    help_text: str,
    *,
    recipe: bool = False,
) -> argparse.ArgumentParser:
    """Adds a subcommand that calls `function` to the argument parser. `recipe`: it takes a recipe and its options."""
    parser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    parser.set_defaults(command=function)
    if recipe:
        parser.add_argument("recipe", type=Path, help="a recipe file (YAML), or a run's folder (runs/NAME)")
        parser.add_argument(
            "--set", metavar="SETTING=VALUE", action="append", default=[], help="change a setting; repeatable"
        )
        parser.add_argument(
            "--tiny", action="store_true", help="the recipe's tiny form, to try it out on a small machine"
        )
    else:
        parser.set_defaults(set=[])
    parser.add_argument(
        "--home", type=Path, default=Path(), help="folder that holds store/ and runs/ (default: the current folder)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The command `qwen-align`: parses, prints, and sets the exit code; what it needs it imports late."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

EXIT_CODES = """exit codes:
  0 ok   2 recipe wrong   3 data wrong or empty   4 a stage failed   75 preempted, run again to go on

examples:
  qwen-align recipes                                          the shipped recipes
  qwen-align recipes quickstart > my.yaml                     copy one
  qwen-align check my.yaml                                    what would run, before anything is trained
  qwen-align run my.yaml                                      run it, or go on where it stopped
  qwen-align run my.yaml --set stages.grpo.learning_rate=1e-6
  qwen-align show my.yaml sft                                 tokens and loss mask of what a stage trains on
  qwen-align chat my.yaml sft                                 talk to what a stage made
  qwen-align score rows.jsonl --reward math_answer --out scored.jsonl
  qwen-align audit reward my_reward.py:judge                  what does this reward pay for?
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parsed = _parser().parse_args(arguments)
    if parsed.command is None:
        _parser().print_help()
        return 0
    from rich.console import Console

    from qwen_align.align.errors import AlignError

    out = Console(highlight=False, markup=False, emoji=False)  # a path may hold [brackets]
    try:
        return int(parsed.command(parsed, out) or 0)
    except AlignError as error:
        Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True).print(f"qwen-align: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        print("qwen-align: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"qwen-align: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 4


def _run(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.commands.progress import Progress, stop_on_signals
    from qwen_align.align.errors import AlignError
    from qwen_align.align.pipeline.plan import plan as make_plan
    from qwen_align.align.pipeline.run import run as run_plan
    from qwen_align.align.reporting import results

    planned = make_plan(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny)
    with Progress(out, planned) as progress, stop_on_signals() as stop:
        try:
            run_plan(planned, progress, force=parsed.force, same_versions=parsed.same_versions, stop=stop)
        except AlignError:
            with contextlib.suppress(OSError):  # what went wrong is said; on a full disk there is no report beside it
                results.write(planned)
            raise
    written = results.write(planned)
    if written.ladder or written.controls:
        out.print(results.table(written))
    out.print(f"report: {planned.run_folder / 'report.md'}", soft_wrap=True)
    return 0


def _check(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.commands import check
    from qwen_align.align.pipeline.plan import plan as make_plan

    planned = make_plan(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny)
    for line in check.describe_plan(planned):
        out.print(line, soft_wrap=True)
    return 0


def _show(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.commands import show
    from qwen_align.align.pipeline.plan import plan as make_plan

    planned = make_plan(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny)
    for line in show.lines(planned, parsed.stage, rows=parsed.rows, first=parsed.first):
        out.print(line if out.is_terminal else show.marked(line), soft_wrap=True, markup=False)
    return 0


def _report(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.pipeline.plan import plan as make_plan
    from qwen_align.align.reporting import results

    planned = make_plan(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny)
    written = results.write(planned)
    if not planned.run_folder.exists():
        out.print(f"{planned.run_folder}: nothing has run yet: `qwen-align run {parsed.recipe}`", soft_wrap=True)
        return 0
    out.print(results.table(written))
    out.print(f"report: {planned.run_folder / 'report.md'}", soft_wrap=True)
    return 0


def _chat(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.commands import chat
    from qwen_align.align.generation.local import LocalEngine
    from qwen_align.align.models import loading
    from qwen_align.align.pipeline.plan import plan as make_plan
    from qwen_align.align.settings.runtime import Runtime
    from qwen_align.align.settings.sampling import SamplingSettings

    folder = chat.model_folder(make_plan(parsed.recipe, parsed.home, parsed.set, tiny=parsed.tiny), parsed.stage)
    renderer = loading.load_renderer(folder)
    engine = LocalEngine(loading.load_model(folder).to(loading.choose_device(Runtime())), stop_ids=renderer.stop_ids)
    sampling = SamplingSettings(
        temperature=parsed.temperature, top_p=parsed.top_p, top_k=parsed.top_k, max_tokens=parsed.max_tokens
    )
    conversation = chat.Conversation(engine, renderer, sampling, seed=parsed.seed, mode=parsed.mode)
    out.print(f"{parsed.stage}: /quit ends, /help lists what else there is", style="dim")
    chat.talk(
        conversation,
        input,
        lambda text, is_thinking: out.print(text, end="", style="dim italic" if is_thinking else "", soft_wrap=True),
        lambda text: out.print(text, style="dim", soft_wrap=True),
    )
    return 0


def _recipes(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.commands import shipped_recipes

    if parsed.name:
        sys.stdout.write(shipped_recipes.text(parsed.name))
        return 0
    for name, says in shipped_recipes.listing():
        out.print(f"{name:<14} {says}", soft_wrap=True)
    return 0


def _schema(parsed: argparse.Namespace, out: "Console") -> int:
    import json

    from qwen_align.align.settings.recipe import Recipe

    sys.stdout.write(json.dumps(Recipe.model_json_schema(), indent=1) + "\n")
    return 0


def _build(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.commands import build

    summary = build.build(build.load(parsed.spec, parsed.set), parsed.out)
    out.print(f"{summary['rows']:,} rows written: {parsed.out}", soft_wrap=True)
    for reason, count in summary["dropped"].items():
        out.print(f"{count:>9,}  dropped: {reason}", soft_wrap=True)
    converted = summary.get("conversion", {})
    if converted:
        out.print(f"format: {converted['format']}{' (recognised)' if converted['recognised'] else ''}")
    for column, count in converted.get("columns_left_out", {}).items():
        out.print(f"{count:>9,}  rows' column left out: {column}", soft_wrap=True)
    return 0


def _push(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.commands.push import push

    out.print(f"pushed: {push(parsed.folder, parsed.to, private=parsed.private)}", soft_wrap=True)
    return 0


def _score(parsed: argparse.Namespace, out: "Console") -> int:
    from rich.progress import Progress, TextColumn

    from qwen_align.align.commands.score import score
    from qwen_align.align.settings.recipe_file import parse_overrides
    from qwen_align.reward.settings import parse_reward

    reward = parse_reward(parsed.reward, dict(parse_overrides(parsed.set)))
    with Progress(TextColumn("{task.completed:,.0f} rows judged"), console=out, transient=True) as bar:
        task = bar.add_task("", total=None)
        scored = score(parsed.rows, parsed.out, reward, lambda rows: bar.update(task, completed=rows))
    mean = "none" if scored.mean is None else f"{scored.mean:.4f}"
    out.print(f"{scored.rows:,} rows, mean value {mean}, without a verdict: {scored.without:,}")
    for reason, count in scored.reasons.items():
        out.print(f"{count:>9,}  {reason}", soft_wrap=True)
    out.print(f"written: {parsed.out}", soft_wrap=True)
    return 0


def _audit(parsed: argparse.Namespace, out: "Console") -> int:
    from rich.table import Table

    from qwen_align.align.rows import Problem, read_rows, require_row_type
    from qwen_align.align.settings.recipe_file import parse_overrides
    from qwen_align.reward.audit import audit_reward
    from qwen_align.reward.settings import parse_reward

    reward = parse_reward(parsed.reward, dict(parse_overrides(parsed.set)))
    reward.check_machine()
    problems = list(require_row_type(Problem, read_rows(parsed.rows)))[: parsed.first] if parsed.rows else []
    found = audit_reward(reward, problems)
    table = Table("", "completion", "value", "reason", box=None, pad_edge=False)
    for one in found:
        is_silent = one.verdict.value is None and one.pays is None
        sign = "wrong" if one.is_wrong else "none" if is_silent else "paid" if one.is_paid and not one.pays else "ok"
        value = "none" if one.verdict.value is None else f"{one.verdict.value:g}"
        table.add_row(sign, one.probe, value, one.verdict.reason)
    out.print(table)
    if not any(one.verdict.value is not None for one in found):
        out.print("it has no verdict on any of them")
        return 4
    wrong, paid = sum(one.is_wrong for one in found), sum(one.is_paid and one.pays is None for one in found)
    out.print(f"{len(found)} completions: {wrong} judged wrongly, {paid} paid that solve nothing")
    return 4 if wrong else 0


def _doctor(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.commands import doctor

    findings = doctor.examine(parsed.home)
    for finding in findings:
        out.print(finding.line(), soft_wrap=True)
    return 4 if any(finding.is_bad for finding in findings) else 0


def _prune(parsed: argparse.Namespace, out: "Console") -> int:
    from qwen_align.align.store import prune

    for folder, gib in prune.prune_store(parsed.home, dry_run=parsed.dry_run):
        out.print(f"{'would free' if parsed.dry_run else 'freed'} {gib:8.3f} GiB  {folder}", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen-align",
        description="Post-training of Qwen models from one recipe: data, SFT, DPO, GRPO, fusion, evaluation.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _command(commands, "run", _run, "run a recipe, or go on where it stopped", recipe=True)
    run.add_argument("--force", metavar="STAGE", action="append", default=[], help="recompute this stage; repeatable")
    run.add_argument("--same-versions", action="store_true", help="refuse results of other major library versions")
    _command(commands, "check", _check, "validate a recipe and say what would run; nothing is trained", recipe=True)
    show = _command(commands, "show", _show, "tokens and loss mask of a stage's rows", recipe=True)
    show.add_argument("stage", help="a data stage, or a stage that trains on data")
    show.add_argument("--rows", type=int, default=3, help="how many rows (default 3)")
    show.add_argument("--first", type=int, default=0, help="skip so many rows first")
    _command(commands, "report", _report, "write and print the report of what is done so far", recipe=True)
    chat = _command(commands, "chat", _chat, "talk to a stage's model in the terminal", recipe=True)
    chat.add_argument("stage", help="a stage that makes a model, or a name under models")
    chat.add_argument("--mode", choices=["think", "no_think"], help="to begin with (default: as the model likes)")
    chat.add_argument("--max-tokens", type=int, default=2048, help="of an answer (default 2048)")
    chat.add_argument("--temperature", type=float, help="default: Qwen3's advice for the mode")
    chat.add_argument("--top-p", type=float, help="the same")
    chat.add_argument("--top-k", type=int, help="the same")
    chat.add_argument("--seed", type=int, default=0, help="the same seed and words get the same answers")
    recipes = _command(commands, "recipes", _recipes, "list the shipped recipes, or print one")
    recipes.add_argument("name", nargs="?", help="print this recipe, to be saved and changed")
    _command(commands, "schema", _schema, "JSON Schema of a recipe, for editors")
    build = _command(commands, "build", _build, "build one data stage alone, with a card of what it holds")
    build.add_argument("spec", type=Path, help="the stage's settings (YAML): builder, sieve, limit, seed")
    build.add_argument("--out", type=Path, required=True, help="a new folder for rows.jsonl and what goes with it")
    push = _command(commands, "push", _push, "upload built data with their card to the Hugging Face hub")
    push.add_argument("folder", type=Path, help="what `build` wrote, or a data stage's folder under store/")
    push.add_argument("--to", required=True, metavar="OWNER/NAME", help="the data set on the hub; made if need be")
    push.add_argument("--private", action="store_true", help="a data set that is made is private")
    score = _command(commands, "score", _score, "judge a file of completions and golds")
    score.add_argument("rows", type=Path, help="completions (or text) and golds: JSON Lines, JSON, CSV, Parquet")
    score.add_argument("--reward", required=True, metavar="REWARD", help="a kind, or my_reward.py:function")
    score.add_argument("--out", type=Path, required=True, help="the same rows with value and reason")
    audit = _command(commands, "audit", _audit, "show a reward golden and adversarial completions: what does it pay?")
    audit.add_argument("what", choices=["reward"], help="what is audited")
    audit.add_argument("reward", metavar="REWARD", help="a kind, or my_reward.py:function")
    audit.add_argument("--rows", type=Path, help="also against these problems (rows.jsonl of a data stage)")
    audit.add_argument("--first", type=int, default=4, help="how many of the problems (default 4)")
    for command in (build, score, audit):
        command.add_argument(
            "--set", metavar="SETTING=VALUE", action="append", default=[], help="change a setting; repeatable"
        )
    _command(commands, "doctor", _doctor, "what this machine has, and what is wrong with it")
    prune = _command(commands, "prune", _prune, "delete stored stages that no run links to")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    function: object,
    says: str,
    *,
    recipe: bool = False,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
    parser.set_defaults(command=function)
    if recipe:
        parser.add_argument("recipe", type=Path, help="a recipe file (YAML)")
        parser.add_argument(
            "--set", metavar="SETTING=VALUE", action="append", default=[], help="change a setting; repeatable"
        )
        parser.add_argument("--tiny", action="store_true", help="the recipe's tiny form, to try it out on this machine")
    else:
        parser.set_defaults(set=[])
    parser.add_argument(
        "--home", type=Path, default=Path(), help="folder that holds store/ and runs/ (default: the current folder)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

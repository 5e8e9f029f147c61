"""What `check` says before anything is trained: order, what is stored, rows, drops, lengths and steps."""

import warnings
from collections.abc import Iterator
from heapq import nlargest
from itertools import chain
from pathlib import Path
from typing import Any

from qwen_align.align.commands.progress import summary
from qwen_align.align.errors import BY_EXIT_CODE, AlignError, DataError, RecipeError
from qwen_align.align.generation.requests import put
from qwen_align.align.models.model_files import find_base
from qwen_align.align.pipeline.plan import Plan, Planned, check_models
from qwen_align.align.rendering.renderer import Renderer, render_pairs, render_rows
from qwen_align.align.rendering.samples import length_percentiles
from qwen_align.align.rows import Pair, Problem, Row, only, read_rows
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.rollout import Rollout, Switch
from qwen_align.align.settings.runtime import split_into_micro_batches
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.stages.build_data import rows as build
from qwen_align.align.store.files import read_json
from qwen_align.align.tracking import setup
from qwen_align.data_builders.conversion import Conversion
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.sieve import Drops
from qwen_align.reward.audit import audit
from qwen_align.reward.combine import SHAPING_SHARE, shaping_scale
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.settings import Reward, check_all, reward_for

AUDITED = 2  # problems whose bad completions a reward is shown
LONGEST_LOOKED_AT = 50  # prompts by characters; the one longest in tokens is among them, or next to it


class Unknown(Exception):
    """Data that a stage has yet to make; the message names it."""


class Preview:
    """The rows and renderers of a plan as far as they can be known now. Nothing is written."""

    def __init__(self, planned: Plan) -> None:
        self.planned = planned
        self._by_name = {one.stage.name: one for one in planned.stages}
        self._rows: dict[str, list[Row]] = {}
        self._renderers: dict[Path, Renderer] = {}
        self._lengths: dict[tuple[Path, int, str | None], int] = {}
        self.drops: dict[str, Drops] = {}

    def rows(self, name: str) -> list[Row]:
        """The rows of a data stage, read if stored, else built; raises Unknown when a rollout comes first."""
        if name not in self._rows:
            one = self._by_name[name]
            if one.is_stored:
                self._rows[name] = list(read_rows(one.folder.path / "rows.jsonl"))
            elif isinstance(one.stage.settings, BuildData):
                settings, drops = one.stage.settings, Drops()
                if one.missing:
                    raise Unknown(f"{one.missing} is there")
                if isinstance(settings.builder, Hub):  # a look before anything runs is not to download
                    raise Unknown(f"{settings.builder.dataset} is downloaded")
                sources = {ref: self._reader(target) for ref, target in one.stage.targets.items()}
                self._rows[name] = list(build(settings, sources, one.stage.seed, drops))
                self.drops[name] = drops
            else:
                raise Unknown(name)
        return self._rows[name]

    def count(self, name: str) -> int | None:
        """How many rows a data stage has, or will have if all are kept; None if nobody can say yet."""
        try:
            return len(self.rows(name))
        except Unknown:
            settings: Any = self._by_name[name].stage.settings
            builder = settings.builder if isinstance(settings, BuildData) else None
            if not isinstance(builder, Conversion) or builder.expect_rows is None:
                return None
            return min(builder.expect_rows, settings.limit or builder.expect_rows)

    def _reader(self, name: str) -> Any:
        rows = self.rows(name)
        return lambda: iter(rows)

    def rows_for(self, one: Planned, refs: list[Any]) -> Iterator[Row]:
        return chain.from_iterable([self.rows(one.stage.targets[ref]) for ref in refs])

    def renderer(self, one: Planned) -> Renderer:
        """The renderer of the model a stage reads."""
        folder = self._model_folder(one)
        if folder not in self._renderers:
            self._renderers[folder] = Renderer.load(folder)
        return self._renderers[folder]

    def prompt_length(self, one: Planned, row: Problem, switch: Switch | None) -> int:
        """Tokens of the row's prompt as it is put; rendered once for all stages with the same template."""
        asked = None if switch is None else switch.model_dump_json()
        name = (self._model_folder(one), id(row), asked)  # rows live as long as the preview does
        if name not in self._lengths:
            self._lengths[name] = len(put(row, self.renderer(one), switch).prompt.ids)
        return self._lengths[name]

    def positions(self, one: Planned) -> int | None:
        """How long a sequence the model a stage reads was made for, if its config says so."""
        known = read_json(self._model_folder(one) / "config.json").get("max_position_embeddings")
        return known if isinstance(known, int) else None

    def _model_folder(self, one: Planned) -> Path:
        """Where the tokenizer of the model a stage reads comes from, followed back; raises Unknown."""
        settings: Any = one.stage.settings
        target = one.stage.targets[settings.from_model]
        before = self._by_name.get(target)
        if before is not None and not isinstance(before.stage.settings, Pretrain):
            return self._model_folder(before)
        folder = Path(one.inputs[settings.from_model]["folder"])
        if before is not None:
            if not before.is_stored:
                raise Unknown(before.stage.name)
            folder = folder / "model"
        base = None if str(folder).startswith("hub:") else find_base(folder)
        if base is None:
            raise Unknown("the hub model is downloaded")
        return base


def lines(planned: Plan) -> Iterator[str]:
    """What would run, a line or a few a stage; raises the AlignError of the first thing that is wrong."""
    setup.check(planned.recipe.tracking)
    check_models(planned)
    preview = Preview(planned)
    width = max(len(one.stage.name) for one in planned.stages)
    notes: list[str] = []
    for number, one in enumerate(planned.stages, start=1):
        state = "stored" if one.is_stored else "to run"
        head = f"{number:>3}  {one.stage.name:<{width}}  {one.stage.kind:<10}  {state}  "
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                said = list(_stage(one, preview))
            except Unknown as unknown:
                said = [f"unknown until {unknown}", *_forecast(one, preview)]
            except AlignError as error:
                raise BY_EXIT_CODE[error.exit_code](f"stage '{one.stage.name}': {error}") from None
        notes += [f"note: stage '{one.stage.name}': {warning.message}" for warning in caught]
        for row, text in enumerate(said):
            yield (head if row == 0 else " " * len(head)) + text
    yield from notes
    yield from setup.where(planned.recipe.tracking, planned.group, planned.tracking_folder)
    to_run = sum(not one.is_stored for one in planned.stages)
    yield f"{len(planned.stages)} stages, {to_run} to run; home: {planned.home.resolve()}"


def _stage(one: Planned, preview: Preview) -> Iterator[str]:
    settings = one.stage.settings
    if isinstance(settings, BuildData):
        yield _data(one, preview)
    elif isinstance(settings, Sft):
        split_into_micro_batches(settings.batch, one.stage.runtime)
        rendered = render_rows(preview.renderer(one), preview.rows_for(one, settings.from_data), settings.max_tokens)
        _fits(preview, one, max((len(sample.ids) for sample in rendered.samples), default=0), "a sample")
        yield from _training(rendered.lengths, rendered.dropped, settings, len(rendered.samples))
    elif isinstance(settings, Dpo | RewardModel):
        pairs = list(only(Pair, preview.rows_for(one, settings.from_data)))
        split_into_micro_batches(settings.batch, one.stage.runtime)
        paired = render_pairs(preview.renderer(one), pairs, settings.max_tokens)
        _fits(preview, one, max((n for n in paired.lengths if n <= settings.max_tokens), default=0), "a pair's side")
        yield from _training(paired.lengths, paired.dropped, settings, len(paired.pairs))
    elif isinstance(settings, Grpo | Ppo):
        check_all(settings.rewards)
        prompts = _problems(preview.rows_for(one, settings.from_data))
        split_into_micro_batches(settings.prompts * settings.samples, one.stage.runtime)
        lengths = [preview.prompt_length(one, row, None) for row in prompts]
        _fits(preview, one, max(lengths, default=0) + settings.sampling.max_tokens, "a prompt and sampling.max_tokens")
        yield (
            f"{settings.steps:,} steps of {settings.prompts} prompts x {settings.samples} completions, "
            f"{settings.optimizer_steps:,} updates"
        )
        yield f"prompt {_percentiles(lengths)}"
        yield from _rewards(settings.rewards, prompts)
    elif isinstance(settings, Rollout):
        check_all(settings.rewards)
        prompts = _problems(preview.rows_for(one, [settings.from_data]))
        switches = [settings.switch] if settings.switch else []
        yield f"{len(prompts):,} prompts x {settings.samples} completions, {_asked(one, preview, prompts, switches)}"
        yield from _rewards(settings.rewards, prompts)
    elif isinstance(settings, Evaluate):
        check_all(settings.rewards)
        prompts = _problems(preview.rows_for(one, settings.from_data))
        _judgeable(prompts, settings.rewards)
        yield (
            f"{len(prompts):,} questions x {len(settings.switches)} switches x {settings.samples} completions, "
            f"{_asked(one, preview, prompts, settings.switches)}"
        )
    else:
        yield f"{len(preview.rows(one.stage.targets[settings.from_data])):,} documents"


def _forecast(one: Planned, preview: Preview) -> Iterator[str]:
    """What can be said of a stage whose rows or model are not there yet."""
    settings: Any = one.stage.settings
    refs = getattr(settings, "from_data", [])
    counts = [preview.count(one.stage.targets[ref]) for ref in ([refs] if isinstance(refs, str) else refs)]
    if isinstance(settings, BuildData):
        counts = [preview.count(one.stage.name)]
    known = [count for count in counts if count is not None]
    if not known or len(known) < len(counts):
        return
    n_rows = sum(known)
    kept = f"if all {n_rows:,} rows are kept: "
    if isinstance(settings, Sft | Dpo | RewardModel):
        steps = count_optimizer_steps(n_rows, settings.epochs, settings.batch)
        yield f"{kept}steps {steps:,}, {_warm_up(settings, steps)}; limit {settings.max_tokens}"
    elif isinstance(settings, Evaluate):
        yield f"{kept}{n_rows:,} questions x {len(settings.switches)} switches x {settings.samples} completions"
    elif isinstance(settings, Rollout):
        yield f"{kept}{n_rows:,} prompts x {settings.samples} completions"
    elif isinstance(settings, BuildData):
        yield f"rows {n_rows:,}, if all are kept"


def _warm_up(settings: Sft | Dpo | RewardModel, steps: int) -> str:
    if settings.warmup_steps >= steps:
        return f"all of warm-up (warmup_steps {settings.warmup_steps})"
    return f"{settings.warmup_steps:,} of warm-up" if settings.warmup_steps else "no warm-up"


def _data(one: Planned, preview: Preview) -> str:
    if one.is_stored:
        return summary(one.folder.manifest()["summary"])
    assert isinstance(one.stage.settings, BuildData)
    kept, dropped = len(preview.rows(one.stage.name)), preview.drops[one.stage.name].counts
    if not kept and one.stage.settings.on_empty == "fail":
        raise DataError(f"no row is left; dropped: {dropped or 'none, the builder made no row'}. See builder and sieve")
    return summary({"rows": kept, "dropped": dropped}) or "no rows"


def _training(
    lengths: list[int], dropped: dict[str, int], settings: Sft | Dpo | RewardModel, kept: int
) -> Iterator[str]:
    if not kept and (isinstance(settings, RewardModel) or settings.on_empty == "fail"):
        raise DataError(
            f"nothing to train on; dropped: {dropped or 'none, there were no rows'}. See max_tokens, from_data"
        )
    steps = count_optimizer_steps(kept, settings.epochs, settings.batch)
    said = summary({"samples": kept, "dropped": dropped, "steps": steps}) or "nothing to train on"
    yield f"{said}, {_warm_up(settings, steps)}" if steps else said
    if lengths:
        yield f"{_percentiles(lengths)}, limit {settings.max_tokens}"


def _rewards(rewards: list[Reward], prompts: list[Problem]) -> Iterator[str]:
    """What is amiss with the rewards of a stage: golds they cannot use, bad completions they pay, scaled weights."""
    scale = shaping_scale(rewards)
    if scale < 1:
        yield (
            f"shaping weights x {scale:.3g}, so that all shaping together reaches {SHAPING_SHARE:g} of the outcomes' "
            "weight and no wrong answer beats a right one"
        )
    for reward in rewards:
        unusable = [row for row in prompts if reward.judge_gold(row.gold).value != 1.0]
        if unusable:
            first = f"'{unusable[0].id}': {unusable[0].gold!r:.60}"
            yield f"{reward.label}: {len(unusable):,} golds of {len(prompts):,} are unusable, the first {first}"
        if reward.is_outcome:
            paid = dict.fromkeys(
                one.probe for one in audit(reward, prompts[:AUDITED]) if one.pays is None and one.is_paid
            )
            if paid:
                yield f"{reward.label} pays for what solves nothing: {', '.join(paid)}"


def _problems(rows: Iterator[Row]) -> list[Problem]:
    """The rows as problems; raises DataError where questions and golds look exchanged, which trains without a word."""
    problems = list(only(Problem, rows))
    judged = [row for row in problems if row.reward == MathAnswer().kind and isinstance(row.gold, str)]
    longer = [row for row in judged if len(_answer_in(row.gold)) > sum(len(turn.content) for turn in row.messages)]
    if 2 * len(longer) > len(judged):
        raise DataError(
            f"{len(longer):,} of {len(judged):,} golds are longer than their questions, the first that of "
            f"'{longer[0].id}': {longer[0].gold!r:.60}; question and gold look exchanged: see the builder's columns"
        )
    return problems


def _answer_in(gold: str) -> str:
    """The answer at the end of a gold that holds a whole solution, as GSM8K's do."""
    return "" if "\\boxed" in gold else gold.rpartition("####")[2]


def _judgeable(prompts: list[Problem], rewards: list[Reward]) -> None:
    """Raises DataError for the first question whose reward cannot use its gold, as the stage would."""
    for row in prompts:
        said = reward_for(row.reward, rewards).judge_gold(row.gold)
        if said.value != 1.0:
            raise DataError(f"question '{row.id}': {said.reason}; its gold is {row.gold!r:.60}")


def _asked(one: Planned, preview: Preview, prompts: list[Problem], switches: list[Switch]) -> str:
    """The length limit, after the longest prompts were put as the stage will put them; raises what that raises."""
    settings: Any = one.stage.settings
    renderer = preview.renderer(one)
    longest = 0
    prompts = nlargest(LONGEST_LOOKED_AT, prompts, key=lambda row: sum(len(turn.content) for turn in row.messages))
    for row in prompts if not switches else ():
        settings.sampling.for_mode(row.mode or renderer.traits.default_mode)
        longest = max(longest, preview.prompt_length(one, row, None))
    for switch in switches:
        settings.sampling.for_mode(switch.mode or renderer.traits.default_mode)
        for row in prompts:
            longest = max(longest, preview.prompt_length(one, row, switch))
    _fits(preview, one, longest + settings.sampling.max_tokens, "a prompt and sampling.max_tokens")
    return f"at most {settings.sampling.max_tokens} tokens each"


def _fits(preview: Preview, one: Planned, tokens: int, what: str) -> None:
    """Raises RecipeError when the model has fewer positions than the longest sequence of the stage."""
    positions = preview.positions(one)
    if positions is not None and tokens > positions:
        raise RecipeError(
            f"{what} takes up to {tokens} tokens, but the model has {positions} positions; lower max_tokens"
        )


def _percentiles(lengths: list[int]) -> str:
    at = length_percentiles(lengths)
    return "tokens: " + (", ".join(f"p{percent} {tokens}" for percent, tokens in at.items()) or "none")

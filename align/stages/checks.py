"""Checks the stages that make data and train on rows before anything runs. Nothing here imports torch."""

from collections.abc import Iterator, Mapping

from qwen_align.align.errors import DataError
from qwen_align.align.models.length_limit import require_length
from qwen_align.align.pipeline.plan import PlannedStage
from qwen_align.align.pipeline.preview import Preview, RowsUnknown
from qwen_align.align.rendering.samples import format_length_percentiles
from qwen_align.align.rendering.training_set import render_pairs, render_rows
from qwen_align.align.reporting.summary_line import format_summary, list_left_out_columns
from qwen_align.align.rows import Pair, Row, Text, require_row_type
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.runtime import split_into_micro_batches
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.training import Optimizer, count_optimizer_steps
from qwen_align.align.stages.build_data import build_rows
from qwen_align.data_builders.conversion_report import Report, format_left_out_columns
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.sieve import Drops, Sources

# --- data


def check_data(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the row and drop counts of a data stage. Raises DataError when no row is left and the stage needs some."""
    if stage.is_stored:
        summary = stage.folder.read_manifest()["summary"]
        yield format_summary(summary)
        yield from format_left_out_columns(list_left_out_columns(summary))
        return
    settings = stage.settings
    assert isinstance(settings, BuildData)
    n_kept, dropped = len(preview.list_rows(stage.name)), preview.drops[stage.name].counts
    if not n_kept and settings.on_empty == "fail":
        raise DataError(f"no row is left; dropped: {dropped or 'none, the builder made no row'}. See builder and sieve")
    yield format_summary({"rows": n_kept, "dropped": dropped}) or "no rows"
    yield from format_left_out_columns(preview.reports[stage.name].n_left_out)


def forecast_data(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of rows a data stage will have, where the recipe says it."""
    n_rows = preview.count_rows(stage.name)
    if n_rows is not None:
        yield f"rows {n_rows:,}, if all are kept"


def list_built_rows(stage: PlannedStage, sources: Sources, drops: Drops, report: Report) -> list[Row]:
    """Builds the rows of a data stage in memory and fills the report of a file's conversion.

    Raises RowsUnknown where that would download something.
    """
    settings = stage.settings
    assert isinstance(settings, BuildData)
    if isinstance(settings.builder, Hub):
        raise RowsUnknown(f"{settings.builder.dataset} is downloaded")
    return list(build_rows(settings, sources, stage.seed, drops, report))


def check_pretraining(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of documents that a pretraining stage reads."""
    settings = stage.settings
    assert isinstance(settings, Pretrain)
    documents = preview.list_rows(stage.targets[settings.from_data])
    least = settings.batch * (settings.sequence_length + 1)
    # A token is a byte or more, and every document has one that ends it.
    if sum(len(row.text.encode()) + 1 for row in documents if isinstance(row, Text)) < least:
        raise DataError(
            f"{len(documents):,} documents do not fill one batch of {settings.batch} x {settings.sequence_length + 1} "
            "tokens; lower batch or sequence_length, or give more documents"
        )
    yield f"{len(documents):,} documents"


# --- training on rows


def check_supervised_training(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the samples, drops, steps and lengths of an SFT stage as lines."""
    settings = stage.settings
    assert isinstance(settings, Sft)
    split_into_micro_batches(settings.batch, stage.runtime)
    rendered = render_rows(
        preview.get_renderer(stage), preview.list_input_rows(stage, settings.from_data), settings.max_tokens
    )
    require_length(preview.find_length_limit(stage), rendered.longest, "a sample")
    yield from _describe_training(settings, rendered.lengths, rendered.dropped, len(rendered.samples))
    if rendered.modes:
        yield "answers by mode: " + ", ".join(f"{count:,} {mode}" for mode, count in rendered.modes.items())


def check_training_on_pairs(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the pairs, drops, steps and lengths of a DPO or reward model stage as lines."""
    settings = stage.settings
    assert isinstance(settings, Dpo | RewardModel)
    pairs = list(require_row_type(Pair, preview.list_input_rows(stage, settings.from_data)))
    split_into_micro_batches(settings.batch, stage.runtime)
    needs_margin = isinstance(settings, RewardModel) and settings.margins
    rendered = render_pairs(preview.get_renderer(stage), pairs, settings.max_tokens, needs_margin=needs_margin)
    require_length(preview.find_length_limit(stage), rendered.longest, "a pair's side")
    yield from _describe_training(settings, rendered.lengths, rendered.dropped, len(rendered.pairs))


def forecast_training(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of steps of a training stage if all rows are kept."""
    settings = stage.settings
    assert isinstance(settings, Sft | Dpo | RewardModel)
    n_rows = preview.count_all_rows(stage, settings.from_data)
    if n_rows is not None:
        steps = count_optimizer_steps(n_rows, settings.epochs, settings.batch)
        yield (
            f"if all {n_rows:,} rows are kept: steps {steps:,}, {describe_warmup(settings, steps)}; "
            f"limit {settings.max_tokens}"
        )


def _describe_training(
    settings: Sft | Dpo | RewardModel, lengths: list[int], dropped: Mapping[str, int], n_samples: int
) -> Iterator[str]:
    """Yields the samples, steps and lengths of a training stage as lines.

    Raises DataError when nothing is left to train on.
    """
    if not n_samples and settings.needs_rows:
        raise DataError(
            f"nothing to train on; dropped: {dropped or 'none, there were no rows'}. See max_tokens, from_data"
        )
    steps = count_optimizer_steps(n_samples, settings.epochs, settings.batch)
    line = format_summary({"samples": n_samples, "dropped": dropped, "steps": steps}) or "nothing to train on"
    yield f"{line}, {describe_warmup(settings, steps)}" if steps else line
    if 0 < n_samples < settings.batch:
        yield f"batch {settings.batch:,} is more than the {n_samples:,} samples: a step takes some several times"
    if lengths:
        yield f"{format_length_percentiles(lengths)}, limit {settings.max_tokens}"


def describe_warmup(settings: Optimizer, steps: int) -> str:
    """Returns the number of warm-up steps of a training stage as text."""
    if settings.warmup_steps >= steps:
        return f"all of warm-up (warmup_steps {settings.warmup_steps})"
    return f"{settings.warmup_steps:,} of warm-up" if settings.warmup_steps else "no warm-up"

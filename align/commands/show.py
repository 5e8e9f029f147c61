"""Implements `qwen-align show`, which prints a stage's rows as tokens coloured by their loss mask."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from rich.text import Text as Styled

from qwen_align.align.commands.data_summary import measure_row, summarize_rows, to_trainable_row
from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.pipeline.preview import Preview, RowsUnknown
from qwen_align.align.references import ModelRef, find_references
from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import OnlyRejectedThinks, Renderer
from qwen_align.align.rendering.samples import Sample, split_into_pieces
from qwen_align.align.reporting.summary_line import list_left_out_columns
from qwen_align.align.rows import Completion, Labelled, Pair, Problem, Row, Steps, to_json_line
from qwen_align.align.stages.registry import STAGE_KINDS
from qwen_align.data_builders.conversion_report import format_left_out_columns

TRAINED, MASKED = "black on green", "dim"
REJECTED = "black on red"


def render_stage_rows(plan: Plan, name: str, *, rows: int, first: int) -> Iterator[Styled]:
    """Yields `rows` data rows of a stage as coloured text, starting at row number `first`.

    Trained tokens are on green, the others dim.

    Raises DataError when the stage's data has yet to be made by a rollout.
    """
    if rows < 1 or first < 0:
        raise RecipeError(f"--rows {rows} --first {first}: at least one row is shown, and rows are counted from 0")
    stage = plan.find_stages(name)[0]
    preview = Preview(plan)
    try:
        renderer = _find_renderer(stage, plan, preview)
        shown_rows = _list_shown_rows(stage, preview)
        is_data = stage.product == "data"
        if _has_known_rows(stage):
            yield from map(
                Styled, summarize_rows(preview.list_rows(stage.name), _count_dropped(stage, preview), renderer)
            )
            yield from map(Styled, format_left_out_columns(_count_left_out_columns(stage, preview)))
        for number, row in enumerate(islice(shown_rows, first, first + rows), start=first):
            yield Styled(f"--- row {number}: {row.row} {row.id}", style="bold")
            yield from _render_data_row(row, renderer) if is_data else _render_row(row, renderer)
    except RowsUnknown as unknown:
        raise DataError(f"stage '{name}': its data is unknown until {unknown}; run the recipe first") from None
    yield Styled("trained", style=TRAINED) + Styled("  ") + Styled("seen, not trained", style=MASKED)


def _count_dropped(stage: PlannedStage, preview: Preview) -> dict[str, int]:
    """Counts the dropped rows of a stage by reason, the most frequent first."""
    if not stage.is_stored:
        return preview.drops[stage.name].counts
    return dict(Counter(stage.folder.read_manifest()["summary"].get("dropped", {})).most_common())


def _count_left_out_columns(stage: PlannedStage, preview: Preview) -> dict[str, int]:
    """Counts the rows that each column of a data stage's source was left out of."""
    if not stage.is_stored:
        return dict(preview.reports[stage.name].n_left_out)
    return list_left_out_columns(stage.folder.read_manifest()["summary"])


def _list_shown_rows(stage: PlannedStage, preview: Preview) -> Iterable[Row]:
    """Returns the data rows to show of a stage: its own rows where known, else its input rows.

    A rollout that has not run has its prompts.
    """
    if _has_known_rows(stage):
        return preview.list_rows(stage.name)
    return preview.list_input_rows(
        stage, [ref for field_path, ref in find_references(stage.settings) if field_path.startswith("from_data")]
    )


def _has_known_rows(stage: PlannedStage) -> bool:
    """Returns whether the rows that a stage makes are stored, or can be listed before it has run."""
    return stage.product == "data" and (stage.is_stored or STAGE_KINDS[stage.kind].list_rows is not None)


def _reads_model(stage: PlannedStage) -> bool:
    """Returns whether a stage has a model among its inputs."""
    return any(isinstance(ref, ModelRef) for _, ref in find_references(stage.settings))


def mark_trained_text(line: Styled) -> str:
    """Converts coloured text to plain text with marks: trained text in «», rejected text in ‹›."""
    marks = {TRAINED: ("«", "»"), REJECTED: ("‹", "›")}
    text, end = "", 0
    for style, spans in groupby(line.spans, key=lambda span: str(span.style)):
        run = list(spans)
        opening, closing = marks.get(style, ("", ""))
        text += line.plain[end : run[0].start] + opening + line.plain[run[0].start : run[-1].end] + closing
        end = run[-1].end
    return text + line.plain[end:]


def _find_renderer(stage: PlannedStage, plan: Plan, preview: Preview) -> Renderer:
    """Returns the chat-template renderer of a stage's model.

    For a data stage it is that of the first model that reads its data, else of the recipe's first model.
    """
    if _reads_model(stage):
        return preview.get_renderer(stage)
    readers = [reader for reader in plan.stages if _reads_model(reader)]
    direct_readers = [reader for reader in readers if stage.name in reader.targets.values()]
    if not readers:
        raise DataError(f"stage '{stage.name}': no stage of this recipe has a model whose template could be shown")
    return preview.get_renderer((direct_readers or readers)[0])


def _render_data_row(row: Row, renderer: Renderer) -> Iterator[Styled]:
    """Yields a data row as coloured text, rendered as a training stage would.

    If it cannot be rendered, the reason is yielded.
    """
    measured = measure_row(row, renderer)
    note = "" if isinstance(measured, int) else f"cannot be rendered: {measured}"
    lines = [Styled(row.text if isinstance(row, Completion) else to_json_line(row))]
    if not note:
        try:
            lines = list(_render_row(row, renderer))
        except TemplateError as error:  # a completion that cannot be trained has a length all the same
            note = f"cannot be trained: {error}"
    if note:
        yield Styled(f"note: {note}")
    yield from lines


def _render_row(row: Row, renderer: Renderer) -> Iterator[Styled]:
    """Yields a row's tokens coloured by loss mask, and its other fields."""
    if isinstance(row, Pair):
        try:
            ids = renderer.render_pair(row)
        except OnlyRejectedThinks as error:  # the stages that train pairs drop and count it
            yield from (Styled(f"note: dropped: {error}"), Styled(to_json_line(row)))
            return
        yield _colour_sample(Sample([*ids.prompt, *ids.chosen], _build_mask(ids.prompt, ids.chosen)), renderer, TRAINED)
        yield _colour_sample(Sample(ids.rejected, [True] * len(ids.rejected)), renderer, REJECTED)
    elif isinstance(row, Problem):
        prompt = renderer.render_prompt(row.messages, mode=row.mode, flag=row.flag)
        yield _colour_sample(Sample(prompt.ids, [False] * len(prompt.ids)), renderer, TRAINED)
        yield Styled(f"gold: {row.gold}  reward: {row.reward}")
    elif isinstance(row, Steps):
        yield from (Styled(f"{label}: {step}") for step, label in zip(row.steps, row.labels, strict=True))
    elif isinstance(row, Completion) and row.finish_reason == "length":
        yield Styled(f"{row.text}  [cut at the token limit: not trained on]")
    else:
        for sample in renderer.render_samples(to_trainable_row(row)):
            yield _colour_sample(sample, renderer, TRAINED)
        if isinstance(row, Labelled):
            yield Styled(f"label: {'good' if row.label else 'bad'}")
        if isinstance(row, Completion):
            verdicts = ", ".join(
                f"{kind}: {verdict.value} ({verdict.reason})" for kind, verdict in row.verdicts.items()
            )
            yield Styled(f"verdicts: {verdicts or 'none'}")


def _build_mask(masked: list[int], trained: list[int]) -> list[bool]:
    """Returns the loss mask of a list of masked tokens followed by trained tokens."""
    return [False] * len(masked) + [True] * len(trained)


def _colour_sample(sample: Sample, renderer: Renderer, trained: str) -> Styled:
    """Returns a sample's text with trained tokens in the style `trained` and all other tokens dim."""
    text = Styled()
    for piece in split_into_pieces(renderer.tokenizer, sample):
        text.append(piece.text.replace("\n", "⏎\n"), style=trained if piece.is_trained else MASKED)
    return text.append(f"  [{len(sample.ids)} tokens, {sum(sample.mask)} trained]")

"""What a stage's rows become: tokens and loss mask, coloured; or the rows of a data stage nothing trains on."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from rich.text import Text as Styled

from qwen_align.align.commands.data_summary import as_shown, as_trained, overview
from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.pipeline.plan import Plan, Planned
from qwen_align.align.pipeline.preview import Preview, Unknown
from qwen_align.align.references import ModelRef, find_references
from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.samples import Sample, split_into_pieces
from qwen_align.align.rows import Completion, Labelled, Pair, Problem, Row, Steps, to_json_line
from qwen_align.align.stages.registry import STAGE_KINDS

TRAINED, MASKED = "black on green", "dim"
REJECTED = "black on red"


def lines(planned: Plan, name: str, *, rows: int, first: int) -> Iterator[Styled]:
    """`rows` rows of the stage from number `first`: trained tokens on green, the others dim.

    Raises DataError when the stage's data has yet to be made by a rollout.
    """
    if rows < 1 or first < 0:
        raise RecipeError(f"--rows {rows} --first {first}: at least one row is shown, and rows are counted from 0")
    one = planned.named(name)[0]
    preview = Preview(planned)
    try:
        renderer = _renderer(one, planned, preview)
        read = _read(one, preview)
        is_data = one.product == "data"
        if _makes_known_rows(one):
            yield from map(Styled, overview(preview.rows(one.stage.name), _dropped(one, preview), renderer))
        for number, row in enumerate(islice(read, first, first + rows), start=first):
            yield Styled(f"--- row {number}: {row.row} {row.id}", style="bold")
            yield from _data_row(row, renderer) if is_data else _row(row, renderer)
    except Unknown as unknown:
        raise DataError(f"stage '{name}': its data is unknown until {unknown}; run the recipe first") from None
    yield Styled("trained", style=TRAINED) + Styled("  ") + Styled("seen, not trained", style=MASKED)


def _dropped(one: Planned, preview: Preview) -> dict[str, int]:
    """Drops by reason, the most frequent first."""
    if not one.is_stored:
        return preview.drops[one.stage.name].counts
    return dict(Counter(one.folder.read_manifest()["summary"].get("dropped", {})).most_common())


def _read(one: Planned, preview: Preview) -> Iterable[Row]:
    """A data stage's own rows as far as they are known (a rollout not run has its prompts), else what it reads."""
    if _makes_known_rows(one):
        return preview.rows(one.name)
    return preview.rows_read_by(
        one, [ref for place, ref in find_references(one.settings) if place.startswith("from_data")]
    )


def _makes_known_rows(one: Planned) -> bool:
    """Whether the stage makes rows that are stored, or that can be listed before it has run."""
    return one.product == "data" and (one.is_stored or STAGE_KINDS[one.kind].list_rows is not None)


def _reads_a_model(one: Planned) -> bool:
    return any(isinstance(ref, ModelRef) for _, ref in find_references(one.settings))


def marked(line: Styled) -> str:
    """The line for where there are no colours: what is trained stands in «», what is rejected in ‹›."""
    marks = {TRAINED: ("«", "»"), REJECTED: ("‹", "›")}
    text, end = "", 0
    for style, spans in groupby(line.spans, key=lambda span: str(span.style)):
        run = list(spans)
        opening, closing = marks.get(style, ("", ""))
        text += line.plain[end : run[0].start] + opening + line.plain[run[0].start : run[-1].end] + closing
        end = run[-1].end
    return text + line.plain[end:]


def _renderer(one: Planned, planned: Plan, preview: Preview) -> Renderer:
    """The renderer of the stage's model, or for data of the first model that reads it (else of the recipe)."""
    if _reads_a_model(one):
        return preview.renderer(one)
    readers = [other for other in planned.stages if _reads_a_model(other)]
    near = [other for other in readers if one.stage.name in other.stage.targets.values()]
    if not readers:
        raise DataError(f"stage '{one.stage.name}': no stage of this recipe has a model whose template could be shown")
    return preview.renderer((near or readers)[0])


def _data_row(row: Row, renderer: Renderer) -> Iterator[Styled]:
    """The row as its readers are given it, or why that cannot be shown."""
    shown = as_shown(row, renderer)
    note, lines = shown.note, [Styled(row.text if isinstance(row, Completion) else to_json_line(row))]
    if shown.row is not None:
        try:
            lines = list(_row(shown.row, renderer))
        except TemplateError as error:  # a completion that cannot be trained has a length all the same
            note = f"cannot be trained: {error}"
    if note:
        yield Styled(f"note: {note}")
    yield from lines


def _row(row: Row, renderer: Renderer) -> Iterator[Styled]:
    if isinstance(row, Pair):
        ids = renderer.render_pair(row)
        yield _coloured(Sample([*ids.prompt, *ids.chosen], _mask(ids.prompt, ids.chosen)), renderer, TRAINED)
        yield _coloured(Sample(ids.rejected, [True] * len(ids.rejected)), renderer, REJECTED)
    elif isinstance(row, Problem):
        prompt = renderer.render_prompt(row.messages, mode=row.mode, flag=row.flag)
        yield _coloured(Sample(prompt.ids, [False] * len(prompt.ids)), renderer, TRAINED)
        yield Styled(f"gold: {row.gold}  reward: {row.reward}")
    elif isinstance(row, Steps):
        yield from (Styled(f"{label}: {step}") for step, label in zip(row.steps, row.labels, strict=True))
    elif isinstance(row, Completion) and row.finish_reason == "length":
        yield Styled(f"{row.text}  [cut at the token limit: not trained on]")
    else:
        for sample in renderer.render_samples(as_trained(row)):
            yield _coloured(sample, renderer, TRAINED)
        if isinstance(row, Labelled):
            yield Styled(f"label: {'good' if row.label else 'bad'}")
        if isinstance(row, Completion):
            said = ", ".join(f"{kind}: {verdict.value} ({verdict.reason})" for kind, verdict in row.verdicts.items())
            yield Styled(f"verdicts: {said or 'none'}")


def _mask(masked: list[int], trained: list[int]) -> list[bool]:
    return [False] * len(masked) + [True] * len(trained)


def _coloured(sample: Sample, renderer: Renderer, trained: str) -> Styled:
    text = Styled()
    for piece in split_into_pieces(renderer.tokenizer, sample):
        text.append(piece.text.replace("\n", "⏎\n"), style=trained if piece.is_trained else MASKED)
    return text.append(f"  [{len(sample.ids)} tokens, {sum(sample.mask)} trained]")

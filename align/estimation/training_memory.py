"""Bytes that a training pass needs on a device at its worst moment, and of what they consist.

The moments of an optimiser step: the head's forward pass, its backward pass, the backward pass of the last layer (when
all that is kept for it is still there), that of the first (when all gradients are), the gradient of the embeddings, and
the optimiser's own step. The largest of them is the peak; which one it is depends on sizes.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qwen_align.align.estimation.head_memory import HeadMemory, HeadWork, measure_full_logits, measure_tiled_head
from qwen_align.align.estimation.layer_tape import write_layer_tape
from qwen_align.align.estimation.numerics import TrainedModel
from qwen_align.align.estimation.tape import Tape

Parts = dict[str, float]
"""Bytes by what they are for: weights, gradients, optimiser, activations, logits and so on."""


class MicroBatch(NamedTuple):
    """A forward pass: the tokens that are computed, and how many of them the head scores."""

    n_tokens: int
    n_scored: int


class TrainingPass(NamedTuple):
    """How a micro-batch is trained on.

    accumulates: gradients of an earlier micro-batch are there. resident: bytes by part that are there at any moment
    beside weights, gradients and moments. reference_pass: the reference policy scores the micro-batch while the
    policy's activations are kept (DPO). full_logits: the loss is transformers' own. has_head: else a layer with one
    output. trunks: how many of the model's size keep activations (PPO's critic is another). masked_rows: rows that
    attention computes padded, with a mask, where it cannot run per row (0: it does).
    """

    model: TrainedModel
    batch: MicroBatch
    optimizer_bytes: float
    checkpointing: bool
    is_on_gpu: bool = True
    accumulates: bool = True
    resident: Mapping[str, float] = {}
    reference_pass: bool = False
    full_logits: bool = False
    has_head: bool = True
    entropy_gradient: bool = False
    gradient_bytes: int = 4
    trunks: int = 1
    offloads_activations: bool = False
    masked_rows: int = 0


class Moment(NamedTuple):
    """A moment of a phase, and the bytes of each part then."""

    name: str
    parts: Parts

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def measure_update(work: TrainingPass) -> Moment:
    """Returns the worst moment of an optimiser step."""
    return max(list_update_moments(work), key=lambda moment: moment.total)


def list_update_moments(work: TrainingPass) -> list[Moment]:
    """Returns the moments of an optimiser step with the bytes that are alive at each."""
    model, shape = work.model, work.model.shape
    tape = _write_tape(work)
    layer_input = float(shape.layer.hidden * model.other_bytes * work.batch.n_tokens)
    saved = layer_input if work.checkpointing else tape.count_saved() + _count_mask_bytes(work)
    kept_layers = 0.0 if work.offloads_activations else work.trunks * shape.n_layers * saved
    one_layer = _measure_layer_backward(tape, work, layer_input)
    # All but this layer's, which is part of it already.
    others = max(0.0, kept_layers - (saved if not work.checkpointing or tape.saves_input else 0.0))
    end = _measure_end_of_trunk(work)
    tables = 2.0 * shape.layer.head_dim * model.other_bytes * work.batch.n_tokens  # of rotary embeddings
    head = measure_head(work)
    gradients = float(work.gradient_bytes * model.trained)
    earlier = gradients if work.accumulates else 0.0
    casts = model.cast_bytes if work.checkpointing or model.lora else 0.0  # else they are among what is saved
    state: Parts = {**_list_resident(model), **work.resident, "optimiser": work.optimizer_bytes}

    def build(
        name: str, *, gradients: float, casts: float = 0.0, activations: float = 0.0, logits: float = 0.0
    ) -> Moment:
        parts = {"gradients": gradients, "casts": casts, "activations": activations + tables, "logits": logits}
        return Moment(name, {**state, **parts})

    moments = [
        build("the head", gradients=earlier, casts=casts, activations=kept_layers + end, logits=head.forward),
        build("the head, backward", gradients=earlier, activations=kept_layers + end, logits=head.backward),
        build(
            "the last layer, backward",
            gradients=max(earlier, head.gradient),
            activations=others + one_layer,
        ),
        build("the first layer, backward", gradients=_count_last_gradients(work), activations=one_layer + layer_input),
        build("the optimiser's step", gradients=gradients),
    ]
    if not work.checkpointing:  # while the last layer is computed, all before it is kept
        forward = others + tape.find_forward_peak(keeps_saved=True)
        moments.append(build("the last layer", gradients=earlier, casts=casts, activations=forward))
    if work.reference_pass:
        scored = measure_forward_pass(work)
        moments.append(
            build(
                "the reference's pass",
                gradients=earlier,
                casts=casts,
                activations=kept_layers + end + scored.trunk,
                logits=scored.head,
            )
        )
    if model.lora is None:
        embeddings = float(work.gradient_bytes * shape.embeddings)
        # The gradient of tied embeddings comes in two parts, whose sum is a third; earlier micro-batches' is there too.
        more = embeddings * (2 * (shape.head == 0) + work.accumulates)
        moments.append(build("the embeddings, backward", gradients=gradients + more, activations=layer_input))
    return moments


class ForwardMemory(NamedTuple):
    """Bytes of a forward pass without gradients beside the weights, in the trunk and in the head."""

    trunk: float
    head: float


def measure_forward_pass(work: TrainingPass) -> ForwardMemory:
    """Returns what a forward pass without gradients needs: one layer's activations, then the head's tiles.

    The two are not alive together; the smaller of both is counted as 0.
    """
    width = float(work.model.shape.layer.hidden * work.model.other_bytes * work.batch.n_tokens)
    trunk = width + _write_tape(work).find_forward_peak(keeps_saved=False)
    head = 2 * width + measure_head(work).forward
    return ForwardMemory(trunk, 0.0) if trunk >= head else ForwardMemory(width, head - width)


def measure_scoring(work: TrainingPass, *, gradients: float = 0.0) -> Moment:
    """Returns the worst moment while the tokens of completions are scored, between drawing and updates."""
    model = work.model
    passed = measure_forward_pass(work)
    parts: Parts = {
        **_list_resident(model),
        **work.resident,
        "optimiser": work.optimizer_bytes,
        "gradients": gradients,
        "casts": model.cast_bytes,
        "activations": passed.trunk,
        "logits": passed.head,
    }
    return Moment("a pass without gradients", parts)


def measure_head(work: TrainingPass) -> HeadMemory:
    """Returns the memory of the head on the micro-batch's scored tokens."""
    model, shape = work.model, work.model.shape
    if not work.has_head:
        return HeadMemory(0.0, 0.0, 0.0)
    head = HeadWork(
        n_tokens=work.batch.n_scored,
        hidden=shape.layer.hidden,
        vocabulary=shape.vocabulary,
        state_bytes=model.other_bytes,
        weight_bytes=model.other_bytes,
        compute=2 if model.autocast else model.other_bytes,
        trained=model.lora is None,
        entropy=work.entropy_gradient,
    )
    return measure_full_logits(head) if work.full_logits else measure_tiled_head(head, is_on_gpu=work.is_on_gpu)


def _write_tape(work: TrainingPass) -> Tape:
    numerics = work.model.get_layer_numerics(is_on_gpu=work.is_on_gpu)
    numerics = numerics._replace(repeats_keys=work.masked_rows > 0)
    return write_layer_tape(work.model.shape.layer, numerics, work.batch.n_tokens)


def _count_mask_bytes(work: TrainingPass) -> float:
    """Returns the bytes of the mask that a layer adds to its attention scores, and keeps."""
    if not work.masked_rows:
        return 0.0
    return work.batch.n_tokens**2 / work.masked_rows * (2.0 if work.model.autocast else work.model.other_bytes)


def _measure_layer_backward(tape: Tape, work: TrainingPass, layer_input: float) -> float:
    """Returns what the backward pass of one layer holds, with that of its activations that are computed again."""
    backward = tape.find_backward_peak(keeps_gradients=not work.accumulates)
    if not work.checkpointing:
        return backward + _count_mask_bytes(work)
    # The gradient that comes from the layer above is there while the layer is computed again, and so is its input.
    again = tape.find_forward_peak(keeps_saved=True) + layer_input * (1 + tape.saves_input)
    return max(backward, again) + _count_mask_bytes(work)


def _count_last_gradients(work: TrainingPass) -> float:
    """Returns the bytes of gradients that are there while the first layer's are computed, without these.

    Those of untied embeddings come after it; that of a tied head waits for them, beside those of earlier micro-batches.
    """
    model, shape = work.model, work.model.shape
    gradients = float(work.gradient_bytes * model.trained)
    embeddings = float(work.gradient_bytes * shape.embeddings) if model.lora is None else 0.0
    if work.accumulates:
        return gradients + (embeddings if shape.head == 0 else 0.0)
    of_layers = gradients / shape.n_layers if model.lora else work.gradient_bytes * shape.linear / shape.n_layers
    return gradients - of_layers - (embeddings if shape.head else 0.0)


def _measure_end_of_trunk(work: TrainingPass) -> float:
    """Returns what the last norm keeps, and its output, from which the head is computed."""
    model, tokens = work.model, work.batch.n_tokens
    hidden = model.shape.layer.hidden
    normed = model.other_bytes if model.lora is None else 0
    return float(hidden * tokens * (4 + normed + model.other_bytes))


def _list_resident(model: TrainedModel) -> Parts:
    """Lists weights and adapters, which are there at any moment."""
    return {"weights": model.weight_bytes, "adapters": 4.0 * model.trained if model.lora else 0.0}

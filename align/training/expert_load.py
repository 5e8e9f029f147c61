"""Measures how evenly the tokens of an optimiser step are spread over a mixture's experts, and balances them.

The load-balancing loss is that of the whole step, over all its passes and processes (arXiv:2501.11873):
`E * sum_e f_e * P_e`, a mean over layers, where E is the number of experts, f_e the share of the step's tokens that are
sent to expert e, and P_e the mean of its routing probability over them. It is as many as the experts of a token where
they are used evenly. f_e has no gradient, but a pass has to know it before it goes backward. So a step of several
passes first makes each once more without gradients and without the head, which costs a forward pass of the trunk; a
step of one pass in each process costs nothing more. transformers' loss of this name takes f and P over all layers
together, where unlike layers cancel, and is one of each pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qwen_align.align.models.packed_attention import PackedLayout, can_pack
from qwen_align.align.models.router_settings import MIXTURES
from qwen_align.align.training.distributed import gather_objects, sum_over_processes


def find_routers(backbone: PreTrainedModel) -> list[nn.Module]:
    """Returns the modules that choose experts, layer by layer: those whose logits transformers records."""
    recorder = (getattr(backbone, "_can_record_outputs", None) or {}).get("router_logits")
    if recorder is None:
        return []
    return [module for module in backbone.modules() if isinstance(module, recorder.target_class)]


def freeze_routers(model: nn.Module) -> None:
    """Leaves the routers of a mixture as they are, and what says how much its shared expert counts."""
    for name, parameter in model.named_parameters():
        if name.endswith((".mlp.gate.weight", ".mlp.shared_expert_gate.weight")):
            parameter.requires_grad_(False)


def watch_experts(model: Any, coefficient: float) -> "ExpertLoad | None":
    """Returns what counts the load of a model's experts. Returns None where it has none, or reads padded rows.

    Other mixtures than Qwen's are not counted. `coefficient`: of the load-balancing loss.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model  # below adapters
    backbone = causal.base_model
    routers = find_routers(backbone) if backbone.config.model_type in MIXTURES else []
    if not routers or not can_pack(backbone.config):
        assert not coefficient, "refused with the settings of routers"
        return None
    return ExpertLoad(backbone, routers, coefficient)


def count_readers(layout: PackedLayout) -> Tensor:
    """Counts the rows that each token of a packed sequence belongs to: a shared prompt's to all that continue it."""
    n_rows = [0] * len(layout.lengths)
    for prompt in layout.prompts:
        if prompt is not None:
            n_rows[prompt] += 1
    return torch.tensor([max(n, 1) for n in n_rows]).repeat_interleave(torch.tensor(layout.lengths))


class ExpertLoad:
    """The load of each layer's experts in an optimiser step, and its load-balancing loss.

    Every token that is read counts once for each row that it belongs to, so neither shared prompts nor the way a batch
    is cut matter. A pass is read between `start_pass` and `end_pass`, its backward pass included, in which checkpointed
    layers are computed again. Of a pass that reads the model several times the first is counted.
    """

    def __init__(self, backbone: PreTrainedModel, routers: list[nn.Module], coefficient: float) -> None:
        self.coefficient = coefficient
        self.n_layers, self.n_experts = len(routers), int(backbone.config.num_experts)
        self.n_chosen = int(backbone.config.num_experts_per_tok)
        self._is_on = self._is_first = self._is_counting = False
        self._is_idle = False
        self._n_reads = 0
        self._weights = torch.zeros(0)
        self._parts: dict[int, Tensor] = {}  # of this pass: each layer's sums of routing probabilities, (E,)
        self.start_step()
        backbone.register_forward_pre_hook(self._start_reading, with_kwargs=True)
        backbone.register_forward_hook(self._end_reading)
        for layer, router in enumerate(routers):
            router.register_forward_hook(self._build_hook(layer))

    # --- a step

    def start_step(self) -> None:
        """Begins an optimiser step."""
        self._counts: Tensor | None = None  # (layers, experts) of this process, float64
        self._probabilities: Tensor | None = None  # their sums, likewise
        self._n_tokens: Tensor | None = None
        self._frequencies: Tensor | None = None  # of the step, (layers, experts)
        self._total: Tensor | None = None

    def needs_counting(self, n_passes: int) -> bool:
        """Returns whether the step's passes have to be counted before they are trained on. All processes call it."""
        return bool(self.coefficient) and max(gather_objects(n_passes)) > 1

    @contextmanager
    def count_passes(self) -> Iterator[None]:
        """Provides a context in which passes are read to be counted alone, and sums them over the processes.

        Random numbers are then as they were: the passes that train drop out the same.
        """
        self._is_counting = True
        with torch.random.fork_rng(), torch.no_grad():
            yield
        self._is_counting = False
        self._share_counts()

    def start_pass(self, *, is_idle: bool = False) -> None:
        """Begins to read a pass. An idle one, made for the other processes' sake, counts for nothing."""
        self._is_on, self._is_idle, self._n_reads = True, is_idle, 0
        self._parts = {}

    def end_pass(self) -> None:
        """Ends the reading of a pass, after its backward pass."""
        self._is_on = False
        self._parts = {}

    def compute_part(self) -> Tensor:
        """Returns the part of the step's loss that the pass just computed adds, times the coefficient.

        The parts of all passes and processes add up to the loss. Without counts the pass is its process's only one.
        """
        if self._frequencies is None:
            self._share_counts()
        assert self._frequencies is not None
        assert self._total is not None
        sums = torch.stack([self._parts[layer] for layer in range(self.n_layers)])
        frequencies = self._frequencies.to(sums.dtype)
        per_layer = (frequencies * sums).sum(dim=1) / self._total.to(sums.dtype)
        return self.coefficient * self.n_experts * per_layer.mean()

    def summarise(self) -> dict[str, float]:
        """Returns the step's figures over all processes, by their names in metrics.jsonl. All processes call it.

        busiest_share: of a layer's choices those of its busiest expert, in the most uneven layer; 1 over the number of
        experts where they are even. unused: experts of all layers that no token was sent to. No token is ever
        dropped: transformers' experts take all that come.
        """
        if self._counts is None or self._probabilities is None:
            return {}
        if self._frequencies is None:
            self._share_counts()
        assert self._frequencies is not None
        assert self._total is not None
        sum_over_processes(self._probabilities)
        frequencies, means = self._frequencies, self._probabilities / self._total
        loss = self.n_experts * (frequencies * means).sum(dim=1).mean()
        return {
            "experts/load_balancing_loss": float(loss),
            "experts/busiest_share": float(frequencies.max()) / self.n_chosen,
            "experts/unused": float((frequencies == 0).sum()),
        }

    def _share_counts(self) -> None:
        """Sums the counts over all processes."""
        assert self._counts is not None
        assert self._n_tokens is not None
        sum_over_processes(self._counts)
        sum_over_processes(self._n_tokens)
        self._total = self._n_tokens.clamp(min=1)
        self._frequencies = self._counts / self._total

    # --- a pass

    def _start_reading(self, _: nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        if not self._is_on:
            return
        if self._is_counting or torch.is_grad_enabled():  # a reference's pass has no gradients
            self._n_reads += 1
            self._is_first = self._n_reads == 1
        layout: PackedLayout = inputs["packed_layout"]
        n_readers = count_readers(layout).to(inputs["input_ids"].device, torch.float32)
        self._weights = n_readers * (not self._is_idle)
        if self._is_first and self._counts is None:
            zeros = torch.zeros(self.n_layers, self.n_experts, dtype=torch.float64, device=self._weights.device)
            self._counts, self._probabilities, self._n_tokens = zeros, zeros.clone(), zeros[0, :1].clone()
        if self._is_first and self._frequencies is None:
            assert self._n_tokens is not None
            self._n_tokens += self._weights.sum()

    def _end_reading(self, *_: Any) -> None:
        self._is_first = False

    def _build_hook(self, layer: int) -> Any:
        def read_router(_: nn.Module, __: Any, outputs: tuple[Tensor, ...]) -> None:
            if self._is_on and (self._is_counting or torch.is_grad_enabled()):
                self._read_router(layer, outputs[0], outputs[-1])

        return read_router

    def _read_router(self, layer: int, logits: Tensor, chosen: Tensor) -> None:
        """Reads the logits (N, E) of a layer's router and the experts that it chose (N, k).

        A checkpointed layer that is computed again does the same, for its saved tensors have to be those of before.
        """
        weights = self._weights
        if self.coefficient and not self._is_counting:
            probabilities = logits.float().softmax(dim=-1)
            sums = (probabilities * weights[:, None]).sum(dim=0)
            if self._is_first:
                self._parts[layer] = sums
        else:
            sums = logits.detach().float().softmax(dim=-1).mul(weights[:, None]).sum(dim=0)
        if not self._is_first:
            return
        assert self._counts is not None
        assert self._probabilities is not None
        if not self._is_counting:
            self._probabilities[layer] += sums.detach()
        if self._frequencies is None:
            places = chosen.reshape(-1)
            self._counts[layer].index_add_(0, places, weights.double().repeat_interleave(chosen.shape[-1]))

"""The policy and, for PPO, the critic as a single torch module with one optimiser and one checkpoint.

One wrapper for several devices holds both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from qwen_align.align.models.packed_attention import has_full_attention, supports_masks
from qwen_align.align.rl.micro_batches import MicroBatch
from qwen_align.align.training.token_scores import score_tokens

POLICY_ADAPTER, VALUE_ADAPTER = "default", "value"


class Scores(NamedTuple):
    """Log-probs, entropies and critic values of each token of a micro-batch, each (B, T) or None if not requested.

    Tokens behind a completion's end are 0.
    """

    logps: Tensor | None
    entropies: Tensor | None
    values: Tensor | None


class Critic(nn.Module):
    """A value head: a linear layer that predicts the return from each token's hidden state.

    The return is that of the tokens still to come. `trunk` is a model of its own, or None: the states are the policy's,
    or with LoRA those of the policy's trunk under an adapter of their own. It starts at zero everywhere, the mean of
    rewards nobody has seen.
    """

    def __init__(self, hidden_size: int, trunk: nn.Module | None = None, *, detached: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1)
        self.detached = detached
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def predict_values(self, hidden: Tensor) -> Tensor:
        """Predicts the return that follows each token from its hidden state; (M, H) -> (M,)."""
        states = hidden.detach() if self.detached else hidden
        values: Tensor = self.head(states.to(self.head.weight.dtype))
        return values[:, 0]


class Actor(nn.Module):
    """A policy module, with a critic module beside it for PPO."""

    def __init__(self, policy: PreTrainedModel | PeftModel, temperature: float, critic: Critic | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.temperature = temperature
        self.config = self.causal_lm.config  # what DeepSpeed's "auto" values are read from

    @property
    def causal_lm(self) -> PreTrainedModel:
        """Returns the policy's causal language model without its PEFT wrapper.

        Adapters lie inside its layers.
        """
        model: Any = self.policy.get_base_model() if isinstance(self.policy, PeftModel) else self.policy
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def has_value_adapter(self) -> bool:
        """Returns whether the policy has a LoRA adapter of its own for the critic's hidden states."""
        return isinstance(self.policy, PeftModel) and VALUE_ADAPTER in self.policy.peft_config

    def forward(
        self, batch: MicroBatch, *, policy: bool = True, values: bool = False, temperature: float | None = None
    ) -> Scores:
        """Computes the log-probs and entropies of a micro-batch's tokens, and the critic's values on request.

        The temperature is that of the sampling if none is given.
        """
        logps = entropies = hidden = None
        if policy or (values and self._shares_states):
            hidden = _compute_states(self.causal_lm.base_model, batch)
        if policy:
            assert hidden is not None
            head: Any = self.causal_lm.get_output_embeddings()
            scores = score_tokens(hidden, head, batch.targets, temperature or self.temperature)
            logps, entropies = _scatter_to_rows(scores.logps, batch), _scatter_to_rows(scores.entropies, batch)
        return Scores(logps, entropies, self._compute_values(batch, hidden) if values else None)

    @property
    def _shares_states(self) -> bool:
        """Returns whether the critic's head reads the policy's own hidden states."""
        return self.critic is not None and self.critic.trunk is None and not self.has_value_adapter

    def _compute_values(self, batch: MicroBatch, hidden: Tensor | None) -> Tensor:
        """Computes the critic's value of each token; (B, T)."""
        assert self.critic is not None
        if self.critic.trunk is not None:
            hidden = _compute_states(self.critic.trunk, batch)
        elif self.has_value_adapter:
            with self._use_adapter(VALUE_ADAPTER):
                hidden = _compute_states(self.causal_lm.base_model, batch)
        assert hidden is not None
        return _scatter_to_rows(self.critic.predict_values(hidden), batch)

    @contextmanager
    def _use_adapter(self, adapter: str) -> Iterator[None]:
        """Activates the named LoRA adapter inside a context manager and the policy's adapter after it."""
        activate_adapter(self.causal_lm, adapter)
        try:
            yield
        finally:
            activate_adapter(self.causal_lm, POLICY_ADAPTER)

    @contextmanager
    def disable_policy_adapter(self) -> Iterator[None]:
        """Disables the policy's LoRA adapter inside a context manager, so that the policy is the reference model."""
        assert isinstance(self.policy, PeftModel)
        with self.policy.disable_adapter():
            yield
        activate_adapter(self.causal_lm, POLICY_ADAPTER)

    @property
    def can_share_prompts(self) -> bool:
        """Returns whether the completions of a prompt can attend to keys and values computed once for that prompt."""
        backbones = [self.causal_lm.base_model]
        if self.critic is not None and self.critic.trunk is not None:
            backbones.append(self.critic.trunk)
        return all(
            supports_masks(backbone.config)
            and has_full_attention(backbone.config)
            and not backbone.is_gradient_checkpointing
            for backbone in backbones
        )

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Enables gradient checkpointing in the policy and in the critic's own trunk.

        Trainer calls it on its model.
        """
        self.causal_lm.gradient_checkpointing_enable(**settings)
        if self.critic is not None and self.critic.trunk is not None:
            self.critic.trunk.gradient_checkpointing_enable(**settings)  # type: ignore[operator]

    def policy_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields the names and parameters that the policy loss trains."""
        return (
            (name, parameter)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not self.is_value_parameter(name)
        )

    def value_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields the names and parameters that only the value loss trains."""
        return (
            (name, parameter)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and self.is_value_parameter(name)
        )

    @staticmethod
    def is_value_parameter(name: str) -> bool:
        """Returns whether a parameter of this name belongs to the critic."""
        return name.startswith("critic.") or f".{VALUE_ADAPTER}." in name


def activate_adapter(model: nn.Module, adapter: str) -> None:
    """Activates the named LoRA adapter of a model and keeps all its adapters trainable.

    By itself peft would freeze the others.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(adapter)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)


def _compute_states(backbone: Any, batch: MicroBatch) -> Tensor:
    """Computes the hidden states from which the tokens of the micro-batch's completions are predicted; (M, H)."""
    states = (
        _encode_with_shared_prompts(backbone, batch) if batch.shares_prompts else _encode_separately(backbone, batch)
    )
    return states[batch.tokens]


def _encode_separately(backbone: Any, batch: MicroBatch) -> Tensor:
    """Computes the hidden states of each completion behind its own copy of the prompt; (B, T, H).

    Causal attention needs no mask: the padding is on the right.
    """
    input_ids, positions = batch.join_prompts()
    hidden: Tensor = backbone(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def _encode_with_shared_prompts(backbone: Any, batch: MicroBatch) -> Tensor:
    """Computes the hidden states of completions that attend to the cached keys of shared prompts; (B, T, H).

    Each prompt is encoded once.
    """
    cache = DynamicCache(config=backbone.config)
    backbone(input_ids=batch.prompts, past_key_values=cache, use_cache=True)
    cache.batch_select_indices(batch.prompt_of)
    n_prompt = batch.n_prompt[batch.prompt_of][:, None]
    seen = torch.arange(batch.prompts.shape[1], device=n_prompt.device) < n_prompt
    columns = torch.arange(batch.input_ids.shape[1], device=n_prompt.device)
    done = backbone(
        input_ids=batch.input_ids,
        past_key_values=cache,
        use_cache=True,
        attention_mask=torch.cat([seen, torch.ones_like(batch.input_ids, dtype=torch.bool)], dim=1).long(),
        position_ids=n_prompt + columns,
    )
    hidden: Tensor = done.last_hidden_state
    return hidden


def _scatter_to_rows(flat: Tensor, batch: MicroBatch) -> Tensor:
    """Scatters a flat tensor of token values into one padded row per completion; (M,) -> (B, T)."""
    return flat.new_zeros(batch.tokens.shape).masked_scatter(batch.tokens, flat)

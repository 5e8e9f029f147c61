"""The policy and, for PPO, the critic as a single torch module with one optimiser and one checkpoint.

One wrapper for several devices holds both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from qwen_align.align.models.attention_setting import use_attention
from qwen_align.align.models.dropout import disable_dropout
from qwen_align.align.models.fp32_head import Fp32Linear
from qwen_align.align.models.packed_attention import SDPA, can_pack, read_rows
from qwen_align.align.models.plain_head import require_plain_head
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
        self.head = Fp32Linear(hidden_size, 1)
        self.detached = detached
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def predict_values(self, hidden: Tensor) -> Tensor:
        """Predicts the return that follows each token from its hidden state; (M, H) -> (M,)."""
        states = hidden.detach() if self.detached else hidden
        values: Tensor = self.head(states)
        return values[:, 0]


class Actor(nn.Module):
    """A policy module, with a critic module beside it for PPO, without dropout.

    `attention`: a registered implementation for packed rows, which all its models are given.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        temperature: float,
        critic: Critic | None = None,
        *,
        attention: str = SDPA,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.temperature = temperature
        self.config = self.causal_lm.config  # what DeepSpeed's "auto" values are read from
        for model in (self.causal_lm, *self._backbones[1:]):
            use_attention(model, attention)
        disable_dropout(self)
        require_plain_head(self.causal_lm)

    @property
    def _no_split_modules(self) -> list[str]:
        """Returns the classes of the layers that FSDP2 gathers one at a time; accelerate reads it."""
        return sorted({name for model in self._backbones for name in model._no_split_modules or ()})

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
        self,
        batch: MicroBatch,
        *,
        policy: bool = True,
        entropies: bool = True,
        values: bool = False,
        states_only: bool = False,
        temperature: float | None = None,
    ) -> Scores:
        """Computes the log-probs of a micro-batch's tokens, their entropies, and the critic's values on request.

        The temperature is that of the sampling if none is given. `states_only`: the policy's trunk reads the tokens,
        and nothing is computed of its states.
        """
        scores = Scores(None, None, None)
        hidden = None
        if states_only:
            _compute_states(self.causal_lm.base_model, batch)
            return scores
        if policy or (values and self._shares_states):
            hidden = _compute_states(self.causal_lm.base_model, batch)
        if policy:
            assert hidden is not None
            head: Any = self.causal_lm.get_output_embeddings()
            temperature = temperature or self.temperature
            flat = score_tokens(hidden, head, batch.targets, temperature, needs_entropies=entropies)
            spread = None if flat.entropies is None else _scatter_to_rows(flat.entropies, batch)
            scores = Scores(_scatter_to_rows(flat.logps, batch), spread, None)
        return scores._replace(values=self._compute_values(batch, hidden)) if values else scores

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
        """Returns whether the completions of a prompt can attend to a prompt that is computed once."""
        return all(can_pack(backbone.config) for backbone in self._backbones)

    @property
    def _backbones(self) -> list[Any]:
        """Returns the models whose hidden states are read: the policy's, and the critic's own if it has one."""
        trunk = None if self.critic is None else self.critic.trunk
        return [self.causal_lm.base_model, *([] if trunk is None else [trunk])]

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
    return read_rows(backbone, batch.input_ids, batch.layout).index_select(0, batch.places)


def _scatter_to_rows(flat: Tensor, batch: MicroBatch) -> Tensor:
    """Scatters a flat tensor of token values into one padded row per completion; (M,) -> (B, T)."""
    return flat.new_zeros(batch.tokens.shape).masked_scatter(batch.tokens, flat)

"""Policy and critic as one module: one optimiser, one checkpoint and one wrapper for several devices hold both."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from qwen_align.align.generation.local import has_full_attention, takes_masks
from qwen_align.align.rl.rollouts import MicroBatch
from qwen_align.align.training.trl_compat import score_tokens

POLICY_ADAPTER, VALUE_ADAPTER = "default", "value"


class Scores(NamedTuple):
    """Of each token of a micro-batch's completions, (B, T), zeros behind them; None for what was not asked."""

    logps: Tensor | None
    entropies: Tensor | None
    values: Tensor | None


class Critic(nn.Module):
    """A linear head over hidden states that says what return is to be expected from the next token on.

    `trunk` is a model of its own, or None: the states are the policy's, or with LoRA those of the policy's trunk under
    an adapter of their own. It starts at zero everywhere, the mean of rewards nobody has seen.
    """

    def __init__(self, hidden_size: int, trunk: nn.Module | None = None, *, detached: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1)
        self.detached = detached
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def values(self, hidden: Tensor) -> Tensor:
        """(M, H) -> (M,)."""
        states = hidden.detach() if self.detached else hidden
        values: Tensor = self.head(states.to(self.head.weight.dtype))
        return values[:, 0]


class Actor(nn.Module):
    """A policy, and for PPO a critic beside it."""

    def __init__(self, policy: PreTrainedModel | PeftModel, temperature: float, critic: Critic | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.temperature = temperature
        self.config = self.causal_lm.config  # what DeepSpeed's "auto" values are read from

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The policy without what wraps it for LoRA; adapters lie inside its layers."""
        found: Any = self.policy.get_base_model() if isinstance(self.policy, PeftModel) else self.policy
        assert isinstance(found, PreTrainedModel)
        return found

    @property
    def has_value_adapter(self) -> bool:
        return isinstance(self.policy, PeftModel) and VALUE_ADAPTER in self.policy.peft_config

    def forward(
        self, batch: MicroBatch, *, policy: bool = True, values: bool = False, temperature: float | None = None
    ) -> Scores:
        """Log-probs and entropies at the temperature, the sampling's if none is given, and values, of the tokens."""
        logps = entropies = hidden = None
        if policy or (values and self._shares_states):
            hidden = _states(self.causal_lm.base_model, batch)
        if policy:
            assert hidden is not None
            head: Any = self.causal_lm.get_output_embeddings()
            scores = score_tokens(hidden, head, batch.targets, temperature or self.temperature)
            logps, entropies = _by_row(scores.logps, batch), _by_row(scores.entropies, batch)
        return Scores(logps, entropies, self._values(batch, hidden) if values else None)

    @property
    def _shares_states(self) -> bool:
        return self.critic is not None and self.critic.trunk is None and not self.has_value_adapter

    def _values(self, batch: MicroBatch, hidden: Tensor | None) -> Tensor:
        assert self.critic is not None
        if self.critic.trunk is not None:
            hidden = _states(self.critic.trunk, batch)
        elif self.has_value_adapter:
            with self._under(VALUE_ADAPTER):
                hidden = _states(self.causal_lm.base_model, batch)
        assert hidden is not None
        return _by_row(self.critic.values(hidden), batch)

    @contextmanager
    def _under(self, adapter: str) -> Iterator[None]:
        use_adapter(self.causal_lm, adapter)
        try:
            yield
        finally:
            use_adapter(self.causal_lm, POLICY_ADAPTER)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, a LoRA policy is the model it started from."""
        assert isinstance(self.policy, PeftModel)
        with self.policy.disable_adapter():
            yield
        use_adapter(self.causal_lm, POLICY_ADAPTER)

    @property
    def can_share_prompts(self) -> bool:
        """Whether completions can attend to keys and values of a prompt that was computed once."""
        backbones = [self.causal_lm.base_model]
        if self.critic is not None and self.critic.trunk is not None:
            backbones.append(self.critic.trunk)
        return all(
            takes_masks(one.config) and has_full_attention(one.config) and not one.is_gradient_checkpointing
            for one in backbones
        )

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """What Trainer calls on its model."""
        self.causal_lm.gradient_checkpointing_enable(**settings)
        if self.critic is not None and self.critic.trunk is not None:
            self.critic.trunk.gradient_checkpointing_enable(**settings)  # type: ignore[operator]

    def policy_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the policy's loss trains."""
        return ((name, one) for name, one in self.named_parameters() if one.requires_grad and not self.is_value(name))

    def value_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What only the value's loss trains."""
        return ((name, one) for name, one in self.named_parameters() if one.requires_grad and self.is_value(name))

    @staticmethod
    def is_value(name: str) -> bool:
        return name.startswith("critic.") or f".{VALUE_ADAPTER}." in name


def use_adapter(model: nn.Module, adapter: str) -> None:
    """Makes one adapter active and leaves all of them trainable, which peft would change."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(adapter)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)


def _states(backbone: Any, batch: MicroBatch) -> Tensor:
    """Hidden states that say the completions' tokens; (M, H)."""
    states = _after_shared(backbone, batch) if batch.shares_prompts else _after_own(backbone, batch)
    return states[batch.tokens]


def _after_own(backbone: Any, batch: MicroBatch) -> Tensor:
    """(B, T, H); each row with its prompt. Causal attention needs no mask, for the padding is on the right."""
    input_ids, places = batch.whole()
    hidden: Tensor = backbone(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


def _after_shared(backbone: Any, batch: MicroBatch) -> Tensor:
    """(B, T, H); each prompt is computed once, and its rows attend to its keys and values."""
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


def _by_row(flat: Tensor, batch: MicroBatch) -> Tensor:
    """(M,) -> (B, T)."""
    return flat.new_zeros(batch.tokens.shape).masked_scatter(batch.tokens, flat)

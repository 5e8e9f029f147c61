"""Extends vLLM's workers so that they load new weights from a folder (`--worker-extension-cls`).

It runs in vLLM's environment and imports nothing of this package.
"""

import json
from pathlib import Path
from typing import Any

import torch

PROTOCOL = "1"  # raised where the methods below change


class WeightUpdates:
    """Methods that vLLM's worker class gets as well; `/collective_rpc` calls them by name."""

    def describe_weight_updates(self: Any) -> dict[str, Any]:
        """Returns the version of these methods, and the precision of the weights."""
        dtype = str(self.model_runner.model_config.dtype).removeprefix("torch.")
        return {"protocol": PROTOCOL, "dtype": dtype}

    @torch.inference_mode()
    def load_policy(self: Any, folder: str) -> dict[str, Any]:
        """Loads the weights of a folder's safetensors files in the place of those held and returns their version.

        `reload_weights` loads no head that is tied to the embeddings: on a CPU, where the head's weights are packed
        anew for its kernel, the old one would stay, without an error (vLLM 0.32).
        """
        self.reload_weights(weights_path=folder)
        model = self.model_runner.get_model()
        if getattr(model.config, "tie_word_embeddings", False):
            model.lm_head.weight = model.model.embed_tokens.weight
            model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
        version = json.loads((Path(folder) / "policy.json").read_text(encoding="utf-8"))["version"]
        return {"version": version}

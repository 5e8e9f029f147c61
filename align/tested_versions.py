"""Lists the versions of libraries that this package was tested with, and what pyproject.toml asks for."""

from typing import NamedTuple


class LibraryVersion(NamedTuple):
    """A library: the version that the tests ran with, what pyproject.toml asks for, and what needs it.

    extra: the extra that installs it, None for what is always there.
    """

    version: str
    requirement: str
    use: str
    extra: str | None = None


TESTED_VERSIONS: dict[str, LibraryVersion] = {
    "torch": LibraryVersion("2.13.0", "torch>=2.9,<3", "every stage that computes with a model"),
    "transformers": LibraryVersion("5.23.0", "transformers>=5.23,<5.24", "models and tokenizers"),
    "trl": LibraryVersion("1.16.0", "trl==1.16.*", "sft, dpo and reward_model"),
    "peft": LibraryVersion("0.21.2", "peft>=0.21,<0.22", "adapters"),
    "accelerate": LibraryVersion("1.15.0", "accelerate>=1.15,<2", "several processes"),
    "deepspeed": LibraryVersion("0.19.8", "deepspeed>=0.19", "strategies zero1, zero2 and zero3", "deepspeed"),
    "bitsandbytes": LibraryVersion(
        "0.50.2", "bitsandbytes>=0.50.2,<0.51", "lora.base_weights: nf4, 8-bit and paged optimisers", "qlora"
    ),
}

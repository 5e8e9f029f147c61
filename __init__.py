"""qwen-align: the whole post-training ladder of a Qwen model from one recipe."""

__version__ = "0.1.0"

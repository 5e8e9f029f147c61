"""Holds what vLLM runs in its own environment, which has nothing of this package: the folder is put on its path."""

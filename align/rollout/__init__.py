"""Engines that draw completions from a model."""

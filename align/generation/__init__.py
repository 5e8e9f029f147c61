"""Engines that sample completions from a model, and what turns rows into their requests."""

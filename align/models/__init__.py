"""Loads language models and reward model scorers from their folders."""

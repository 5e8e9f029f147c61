"""Loads models and reward scorers from their folders."""

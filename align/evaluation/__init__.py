"""Accuracy with its error, and tests between models."""

"""Computes accuracy with its standard error and tests between models."""

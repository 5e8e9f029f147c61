"""Stored results: a folder a stage, its key, its files and what they are worth."""

"""Engines in Python environments of their own: their versions, locks, installation, and where their Python is."""

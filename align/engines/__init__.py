"""Runs engines in Python environments of their own: installs them, and asks their servers over HTTP."""

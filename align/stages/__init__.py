"""Holds one file per kind of stage, each with a function `run`."""

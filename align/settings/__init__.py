"""Defines the settings of each kind of stage and of a recipe. Nothing here imports torch."""

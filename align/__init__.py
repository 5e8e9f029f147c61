"""Holds everything that plans and runs a recipe: settings, stages, training, reports."""

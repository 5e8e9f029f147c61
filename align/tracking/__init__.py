"""Sends training curves and evaluation results to experiment trackers, each in a process of its own."""

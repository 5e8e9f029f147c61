"""Sends training curves and evaluation results to trackers, each in a process of its own."""

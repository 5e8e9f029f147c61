"""Runs training for every training stage: arguments for TRL, checkpoints, processes and the training loop."""

"""Rewards: each judges a completion and says why."""

"""Rewards: each judges a completion and says why.

Nothing is imported here: the row types need `reward.verdict`, and the rewards need the row types.
"""

"""Stores results: one folder per stage, its key, its files and their digests."""

"""Implements the subcommands of the command line."""

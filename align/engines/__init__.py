"""Runs engines that live in environments of their own: child processes and servers that are asked over HTTP."""

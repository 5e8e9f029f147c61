"""Runs model-written code in isolated processes and tests it: the sandbox, its protocol and the test formats."""

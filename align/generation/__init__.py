"""Samples completions from a model with generation engines and builds their requests from rows."""

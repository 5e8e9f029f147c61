"""Exports the Python API: `from qwen_align import Recipe, plan, run, evaluate, load_model`."""

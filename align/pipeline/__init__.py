"""Turns a recipe into the processes of its stages: builds the graph, plans it and runs it."""

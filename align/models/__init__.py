"""Models and reward scorers from their folders."""

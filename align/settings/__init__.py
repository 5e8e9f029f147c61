"""Settings of each kind of stage, and of a recipe; nothing here imports torch."""

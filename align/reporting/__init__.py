"""The report of a run: its numbers, and what people read of them."""

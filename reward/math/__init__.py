"""Mathematical answers: what they say, and when two of them say the same."""

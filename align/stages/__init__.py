"""One file a kind of stage, each with `run`."""

"""From a recipe to its stages' processes: the graph, the plan, the run."""

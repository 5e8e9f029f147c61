"""Reports a run: collects its metrics and writes them as tables and pages."""

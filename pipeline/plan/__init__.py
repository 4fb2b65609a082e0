"""The plan: which crop of which image, drawn from counters."""

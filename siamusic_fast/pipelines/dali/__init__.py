"""The engine in DALI: one graph for CPU and GPU."""

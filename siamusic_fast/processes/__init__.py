"""Processes that work together: started, joined, stopped."""

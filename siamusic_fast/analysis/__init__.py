"""Weights in, answers out."""

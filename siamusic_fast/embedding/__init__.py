"""Embedding: audio of any kind in, outputs of a network out."""

"""Finds and decodes audio, and rejects the files that cannot be used."""

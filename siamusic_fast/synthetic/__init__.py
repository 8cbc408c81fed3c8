"""Synthesizes music: the small corpus that the demo and the tests run on."""

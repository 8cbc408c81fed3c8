"""How fast, against what."""

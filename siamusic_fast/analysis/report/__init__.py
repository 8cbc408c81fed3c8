"""A page about runs, in one HTML file that needs no network."""

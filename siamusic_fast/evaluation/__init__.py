"""Features of encoders, probes of them, and scores of classifiers."""

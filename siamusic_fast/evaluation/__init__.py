"""What an encoder or a classifier is worth: features, probes and scores."""

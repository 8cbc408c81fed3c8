"""Shards in, batches of mel spectrograms out."""

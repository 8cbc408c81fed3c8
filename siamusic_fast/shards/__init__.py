"""Audio files in, tar shards out."""

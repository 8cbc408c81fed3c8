"""Audio files found, decoded and judged."""

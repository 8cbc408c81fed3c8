"""Object storage: objects behind URLs such as s3://bucket/name, and a cache of them on a local disk."""

"""The engine in torch: for machines without DALI, as the reference in tests, and as a peer."""

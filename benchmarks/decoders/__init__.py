"""Depth pruning of decoder language models: Shoal and short re-implementations of others, on one footing."""

"""Text: corpus readers, tokenizers, chat templates, token shards, loaders, answer extraction (rank 1)."""

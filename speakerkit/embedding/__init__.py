"""Speaker embeddings: backbones, heads, the training task, and extraction with a finished bundle."""

"""Recordings to lists, lists to batches: formats, shards, stores, augmentation, preparation, checks."""

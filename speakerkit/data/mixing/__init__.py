"""Mixtures of several speakers on disk: their metadata, published or drawn here, their sound, and lists of them."""

"""Corpora as they are published, turned into Kaldi data directories: one module a corpus."""

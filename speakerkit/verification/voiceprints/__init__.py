"""Voiceprints: who is enrolled, with what, and who of them is speaking. Works without torch."""

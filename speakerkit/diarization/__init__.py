"""Who spoke when: speech, windows, clusters, turns; formats and error rates."""

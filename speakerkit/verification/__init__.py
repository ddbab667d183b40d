"""Is it the same speaker: trials, scoring and metrics. Works without torch."""

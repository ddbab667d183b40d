"""Public speaker models by name: what is known of each, and fetching them on request. Nothing here needs torch."""

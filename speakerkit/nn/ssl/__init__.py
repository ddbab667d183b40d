"""Self-supervised speech models: all their layers, their published weights, and cheap ways to tune them."""

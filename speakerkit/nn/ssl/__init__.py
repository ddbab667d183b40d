"""Self-supervised speech models as front-ends: all their layers, their published weights, and cheap ways to tune them."""

"""Are two extractions of the same recordings the same? Exits 2 where a cosine is below 0.9999."""

from __future__ import annotations

import sys

import numpy as np

from speakerkit.data.ark import read_embeddings

LOWEST = 0.9999


def main(first: str, second: str) -> int:
    """Print the lowest cosine between embeddings of the same key."""
    one, other = read_embeddings(first), read_embeddings(second)
    if set(one.keys) != set(other.keys):
        print(f"compare_embeddings: {first} and {second} hold other keys", file=sys.stderr)
        return 2
    a = one.vectors.astype(np.float64)  # (utterances, dim)
    b = other.vectors[other.rows(one.keys)].astype(np.float64)
    cosines = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    worst = int(np.argmin(cosines))
    print(f"{len(cosines)} embeddings, lowest cosine {cosines[worst]:.7f} ({one.keys[worst]})")
    return 0 if cosines[worst] >= LOWEST else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))

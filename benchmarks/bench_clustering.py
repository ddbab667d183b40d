"""Clustering of 10 minutes, 1 hour and 4 hours of windows: ours against the dense routes that a reader would write.

    OMP_NUM_THREADS=1 python benchmarks/bench_clustering.py [N ...]

Six speakers, 256 values, a window every 0.75 s. Times are seconds of the processor, medians of three runs (one above
10 000 windows); the peak is what the process of one method and size has held above what it held with its imports and
the embeddings (Linux only). The dense routes: all cosines, the largest 1 % of each row, `eigh` of the whole Laplacian
and k-means; all cosines and scipy's average linkage. They are left out above 10 000 windows, where eigh would take
hours and scipy's distances 3 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import eigh
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from speakerkit.diarization.clustering import cluster, settings_for
from speakerkit.verification.backend import Backend
from speakerkit.verification.chain import Chain
from speakerkit.verification.plda import Plda

DIM, SPEAKERS, NOISE = 256, 6, 1.0
SIZES = (800, 4800, 20_000)
RUNS = 3
LARGEST_DENSE = 10_000
METHODS = ("ahc", "spectral", "nme-sc", "hdbscan", "kmeans", "vbx")


def make(windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Turns of 8 windows, each of a random speaker; the cosine of two windows of one is 0.5 in the mean."""
    rng = np.random.default_rng(0)
    own = rng.integers(SPEAKERS, size=windows // 8 + 1).repeat(8)[:windows]
    rows = rng.normal(size=(SPEAKERS, DIM))[own] + NOISE * rng.normal(size=(windows, DIM))
    return rows.astype(np.float32), own


def cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def dense_spectral(rows: np.ndarray) -> np.ndarray:
    """Everything N by N, all eigenvalues."""
    affinities = (1 + cosines(rows)) / 2
    kept = 10 if len(rows) < 1000 else len(rows) // 100
    for row in affinities:
        row[np.argsort(row)[:-kept]] = 0
    np.fill_diagonal(affinities, 0)
    affinities = (affinities + affinities.T) / 2
    values, vectors = eigh(np.diag(affinities.sum(axis=1)) - affinities)
    count = int(np.argmax(np.diff(values[:21]))) + 1
    return KMeans(count, n_init=10, random_state=0).fit_predict(vectors[:, :count])


def dense_linkage(rows: np.ndarray) -> np.ndarray:
    """scipy on all distances, cut at our threshold."""
    distances = 1.0 - cosines(rows).astype(np.float64)
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances, checks=False), "average")
    return fcluster(tree, 0.7, "distance")


def peak() -> float:
    """MB that this process has held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measure(name: str, windows: int) -> dict[str, float]:
    """Seconds, memory and agreement with the truth of one method, in this process."""
    rows, own = make(windows)
    model = Plda.of(np.zeros(DIM), NOISE**2 * np.eye(DIM), np.diag(np.linspace(1.5, 0.5, DIM)))
    backend = Backend(Chain(), model, DIM)
    dense: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "dense-spectral": dense_spectral,
        "dense-ahc": dense_linkage,
    }
    work = dense.get(name) or (lambda each: cluster(each, settings_for(name), backend))
    work(rows[:100])  # imports
    before, seconds = peak(), []
    for _ in range(1 if windows > LARGEST_DENSE else RUNS):
        start = time.process_time()
        labels = work(rows)
        seconds.append(time.process_time() - start)
    agreement = adjusted_rand_score(own, labels)
    return {"seconds": median(seconds), "mb": peak() - before, "found": len(set(labels.tolist())), "ari": agreement}


def in_own_process(name: str, windows: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, str(windows)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
        return
    print(f"{'method':16}{'windows':>8}{'seconds':>9}{'peak MB':>9}{'speakers':>9}{'ARI':>7}  dense / ours")
    for windows in [int(each) for each in sys.argv[1:]] or SIZES:
        ours = {}
        for name in (*METHODS, *(("dense-ahc", "dense-spectral") if windows <= LARGEST_DENSE else ())):
            ours[name] = found = in_own_process(name, windows)
            versus = ours.get(name.removeprefix("dense-")) if name.startswith("dense") else None
            ratio = f"{found['seconds'] / versus['seconds']:8.1f} times" if versus else ""
            line = (
                f"{name:16}{windows:8}{found['seconds']:9.2f}{found['mb']:9.0f}{found['found']:9.0f}{found['ari']:7.3f}"
            )
            print(line + ratio, flush=True)


if __name__ == "__main__":
    main()

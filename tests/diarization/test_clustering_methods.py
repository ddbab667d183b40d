"""All clustering methods: what is asked for is kept, on any data; and they find speakers that are easy to find."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from speakerkit.diarization.clustering import (
    METHODS,
    AhcSettings,
    ClusterSettings,
    assignment_confidence,
    cluster,
    cluster_with_confidence,
    settings_for,
)
from speakerkit.errors import ConfigError, DataError
from tests.diarization.voices import plda_backend, voices

METHOD_NAMES = ("ahc", "hdbscan", "kmeans", "nme-sc", "spectral", "vbx")
TIMELESS = tuple(name for name in METHOD_NAMES if name != "vbx")


def labels_of(rows: np.ndarray, method: str, **options: Any) -> np.ndarray:
    return cluster(rows, settings_for(method, **options), plda_backend(rows.shape[-1]))


def test_the_table_is_complete() -> None:
    assert tuple(METHODS) == METHOD_NAMES
    assert all(METHODS[name].settings.method == name for name in METHOD_NAMES)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("speakers", [1, 2, 4, 7])
def test_finds_speakers_that_lie_apart(method: str, speakers: int) -> None:
    rows, own = voices(speakers, 40 * speakers, seed=speakers, dim=64)
    assert np.array_equal(labels_of(rows, method), own)  # the first to appear is 0, and so on


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("asked", [1, 2, 5, 30])
def test_the_number_asked_for_is_kept(method: str, asked: int) -> None:
    rows, _ = voices(3, 30)
    assert set(labels_of(rows, method, num_speakers=asked)) == set(range(asked))


@pytest.mark.parametrize("method", METHOD_NAMES)
@settings(max_examples=34, derandomize=True)
@given(data=st.data())
def test_bounds_hold_on_random_cases(method: str, data: st.DataObject) -> None:
    """34 cases of each of the six methods, with rows that are equal, opposite, or alike."""
    windows = data.draw(st.integers(1, 40))
    low = data.draw(st.integers(1, windows))
    high = data.draw(st.one_of(st.none(), st.integers(low, 50)))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    kinds = data.draw(st.integers(1, windows))
    rows = rng.normal(size=(kinds, 5))[rng.integers(kinds, size=windows)]
    rows += data.draw(st.sampled_from([0.0, 1e-7, 0.1, 1.0])) * rng.normal(size=rows.shape)
    found = labels_of(rows, method, min_speakers=low, max_speakers=high)
    count = found.max() + 1
    assert low <= count <= (windows if high is None else high)
    _, first = np.unique(found, return_index=True)
    assert np.array_equal(np.sort(first), first)
    assert set(found) == set(range(count))
    exact = labels_of(rows, method, num_speakers=low)
    assert set(exact) == set(range(low))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_nothing_one_and_two_windows(method: str) -> None:
    assert labels_of(np.zeros((0, 32)), method).shape == (0,)
    assert cluster([], settings_for(method)).shape == (0,)
    rows, _ = voices(2, 2, turn=1, noise=0.0)
    assert labels_of(rows[:1], method).tolist() == [0]
    assert labels_of(rows, method, num_speakers=2).tolist() == [0, 1]
    assert labels_of(rows, method, num_speakers=1).tolist() == [0, 0]


@pytest.mark.parametrize("method", ["ahc", "kmeans", "nme-sc", "spectral"])
def test_two_windows_by_their_cosine(method: str) -> None:
    assert labels_of(np.array([[1.0, 0.0], [0.0, 1.0]]), method).tolist() == [0, 1]
    assert labels_of(np.array([[1.0, 0.0], [1.0, 0.1]]), method).tolist() == [0, 0]


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize("windows", [2, 5, 25, 70])
def test_identical_embeddings_are_one_speaker_or_as_many_as_asked_for(method: str, windows: int, noise: float) -> None:
    rows = np.tile(np.linspace(-1, 1, 32), (windows, 1))
    rows += noise * np.random.default_rng(0).normal(size=rows.shape)
    assert labels_of(rows, method).max() == 0
    assert labels_of(rows, method, num_speakers=2).max() == 1


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_two_speakers_of_identical_embeddings(method: str) -> None:
    rows = np.repeat(np.eye(32)[:2] * 6, 30, axis=0)
    assert np.array_equal(labels_of(rows, method), np.repeat([0, 1], 30))


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (np.vstack([np.ones((3, 32)), np.zeros((1, 32))]), "window 3 is all zero"),
        (np.where(np.eye(3, 32) == 1, np.nan, 1.0), "window 0 is not finite"),
        (np.full((2, 32), np.inf), "window 0 is not finite"),
        (np.ones(32), "shape"),
    ],
)
def test_embeddings_without_direction_are_refused(method: str, rows: np.ndarray, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        labels_of(rows, method)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_speakers": 0}, "num_speakers"),
        ({"min_speakers": 0}, "min_speakers"),
        ({"min_speakers": 3, "max_speakers": 2}, "max_speakers"),
        ({"num_speakers": 3, "max_speakers": 2}, "num_speakers"),
        ({"num_speakers": 2, "min_speakers": 3}, "num_speakers"),
        ({"threshold": float("nan")}, "threshold"),
        ({"min_cluster_size": 0}, "min_cluster_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 32}, "seed"),
        ({"treshold": 0.3}, "treshold.*did you mean 'threshold'"),
    ],
)
def test_settings_that_contradict_themselves(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        settings_for("ahc", **options)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_fewer_windows_than_speakers(method: str) -> None:
    rows, _ = voices(2, 4)
    with pytest.raises(ConfigError, match="num_speakers: is 5, the recording has 4 windows"):
        labels_of(rows, method, num_speakers=5)
    with pytest.raises(ConfigError, match="min_speakers: is 5, the recording has 4 windows"):
        labels_of(rows, method, min_speakers=5)
    with pytest.raises(ConfigError, match="num_speakers: is 1, the recording has 0 windows"):
        labels_of(rows[:0], method, num_speakers=1)


def test_unknown_methods_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'spectral'"):
        settings_for("spectrall")


@pytest.mark.parametrize("method", TIMELESS)
@pytest.mark.parametrize("windows", [15, 150, 900])
def test_the_order_of_windows_does_not_matter(method: str, windows: int) -> None:
    rows, _ = voices(5, windows, noise=1.0, dim=16)  # no clear clusters: chance would show
    order = np.random.default_rng(1).permutation(windows)
    options = {"search_windows": 100} if method == "nme-sc" else {}
    found, shuffled = labels_of(rows, method, **options), labels_of(rows[order], method, **options)
    assert adjusted_rand_score(found[order], shuffled) == 1.0


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_length_does_not_matter_and_the_input_stays(method: str) -> None:
    rows, _ = voices(3, 90, noise=1.0)
    before = rows.copy()
    found = labels_of(rows, method)
    assert np.array_equal(rows, before)
    if method != "vbx":  # a PLDA sees lengths, where its chain does not take them away
        scales = 2.0 ** np.random.default_rng(0).integers(-60, 60, size=(90, 1))
        assert np.array_equal(found, labels_of(rows * scales.astype(np.float32), method))


def test_threads_do_not_matter() -> None:
    script = """
import zlib
from speakerkit.diarization.clustering import cluster_with_confidence, settings_for
from tests.diarization.voices import plda_backend, voices
rows, _ = voices(5, 700, noise=1.2)
for method in ("ahc", "hdbscan", "kmeans", "nme-sc", "spectral", "vbx"):
    options = {"steps": 5} if method == "nme-sc" else {}
    found = cluster_with_confidence(rows, settings_for(method, **options), plda_backend())
    print(method, zlib.crc32(found.labels.tobytes()), zlib.crc32(found.confidence.tobytes()))
"""
    outputs = []
    for threads in "18":
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        ran = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(ran.stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 6


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_tiny_clusters_go_to_the_nearest(method: str) -> None:
    rows, own = voices(2, 60, noise=0.3)
    rows[7] = 0.7 * rows[0] + 2.0 * voices(1, 1, seed=9)[0][0]  # an outlier, nearer to the first
    found = labels_of(rows, method)
    assert np.array_equal(np.delete(found, 7), np.delete(own, 7))
    assert found.max() == 1


def test_the_smallest_cluster_by_the_length_of_the_file() -> None:
    sizes = {windows: ClusterSettings().smallest(windows) for windows in (1, 9, 25, 30, 1000, 4800)}
    assert sizes == {1: 1, 9: 1, 25: 2, 30: 3, 1000: 3, 4800: 9}
    assert ClusterSettings(min_cluster_size=5).smallest(9) == 5


def test_a_calibrated_threshold_can_be_given() -> None:
    rows, _ = voices(2, 40, noise=0.5)
    assert cluster(rows, AhcSettings(threshold=0.99, min_cluster_size=1)).max() > 1
    assert cluster(rows, AhcSettings(threshold=-1.0)).max() == 0


def test_confidence_falls_between_two_speakers() -> None:
    first, second = np.eye(8)[:2]
    rows = np.array(
        [first] * 5 + [second] * 5 + [0.8 * first + 0.6 * second, 0.6 * first + 0.8 * second, first + second]
    )
    sure = assignment_confidence(rows, [0] * 5 + [1] * 5 + [0, 0, 0])
    assert (sure[:10] > 0.95).all()
    assert sure[0] > sure[10] > 0.5 > sure[11]  # the last but one would rather be with the second
    assert sure[12] == pytest.approx(0.5, abs=0.3)
    assert ((sure >= 0) & (sure <= 1)).all()


def test_confidence_by_the_definition() -> None:
    rows, own = voices(3, 20, noise=1.0)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = []
    for place in range(20):
        others = [unit[each] for each in range(20) if own[each] == own[place] and each != place]
        mine = unit[place] @ np.mean(others, axis=0) / np.linalg.norm(np.mean(others, axis=0))
        means = [unit[own == each].mean(axis=0) for each in range(3) if each != own[place]]
        margin = mine - max(0.0, *(unit[place] @ mean / np.linalg.norm(mean) for mean in means))
        expected.append(1 / (1 + np.exp(-margin / 0.1)))
    assert np.allclose(assignment_confidence(rows, own), expected, atol=1e-6)


def test_confidence_of_few_windows() -> None:
    assert assignment_confidence(np.zeros((0, 4)), []).shape == (0,)
    assert assignment_confidence(np.ones((1, 4)), [0]).tolist() == [0.5]
    assert assignment_confidence(np.ones((2, 4)), [0, 0])[0] > 0.99
    assert np.isfinite(assignment_confidence(np.array([[1.0, 0], [-1.0, 0], [1.0, 0]]), [0, 0, 0])).all()


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_labels_come_with_confidence(method: str) -> None:
    rows, own = voices(3, 90, noise=0.3, dim=64)
    found = cluster_with_confidence(rows, settings_for(method), plda_backend(64))
    assert np.array_equal(found.labels, own)
    assert found.confidence.shape == (90,)
    assert (found.confidence > 0.9).all()
    assert (found.confidence <= 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_four_hours_stay_under_two_gigabytes(method: str) -> None:
    script = f"""
from pathlib import Path
from speakerkit.diarization.clustering import cluster, settings_for
from tests.diarization.voices import plda_backend, voices
rows, own = voices(6, 20_000, noise=1.0, dim=256)
labels = cluster(rows, settings_for("{method}"), plda_backend(256, within=1.0))
print((labels == own).mean())
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    right, kilobytes = ran.stdout.split()
    assert float(right) > 0.99
    assert int(kilobytes) < 2e6

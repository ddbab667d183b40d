"""Search among voiceprints: against a plain sort of all cosines, and what indexes miss."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from speakerkit.errors import DataError, MissingExtraError
from speakerkit.verification.voiceprints import search
from speakerkit.verification.voiceprints.search import (
    ExactIndex,
    FaissIndex,
    Searcher,
    build_index,
    exact_search,
    open_searcher,
)
from speakerkit.verification.voiceprints.sqlite import IndexNote, SqliteStore
from speakerkit.verification.voiceprints.store import Block, Enrolment, ModelStamp, VoiceStore, open_store

DIM, VOICES = 16, 400
STAMP = ModelStamp("a" * 64, DIM)


def vectors(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoiceStore]:
    """400 voices of two recordings each."""
    with open_store(tmp_path / "voices.db", create=True) as opened:
        opened.add_all(
            (
                (f"v{number}", [_enrolment(row, 2 * number + which) for which, row in enumerate(pair)])
                for number, pair in enumerate(vectors(2 * VOICES, 0).reshape(VOICES, 2, DIM))
            ),
            STAMP,
        )
        yield opened


def _enrolment(vector: np.ndarray, number: int) -> Enrolment:
    return Enrolment.from_embedding(vector, 1.0, f"{number:064x}", f"{number}.wav")


def _sorted(store: VoiceStore, query: np.ndarray, match: str) -> list[str]:
    """All names by the cosine of the plain definition, highest first."""
    cosines = {}
    for voice in store.voices():
        rows = np.array([item.vector for item in store.enrolments(voice.name)], dtype=np.float64)
        mean = rows.mean(axis=0)
        every = rows @ query if match == "exemplars" else [mean @ query / np.linalg.norm(mean)]
        cosines[voice.name] = max(every)
    return sorted(cosines, key=lambda name: -cosines[name])


def _names(searcher: Searcher, query: np.ndarray, count: int) -> list[str]:
    return [candidate.name for candidate in searcher.nearest(query, count)]


@pytest.mark.parametrize(("rows", "block", "count"), [(1000, 64, 10), (1000, 5000, 1), (7, 2, 10), (50, 50, 50)])
def test_exact_search_is_a_sort(rows: int, block: int, count: int) -> None:
    table, queries = vectors(rows, 1), vectors(5, 2)
    ids = np.random.default_rng(3).permutation(rows)
    blocks = [Block(ids[start : start + block], table[start : start + block]) for start in range(0, rows, block)]
    cosines, found = exact_search(blocks, queries, count)
    full = queries.astype(np.float64) @ table.T.astype(np.float64)
    order = np.argsort(-full, axis=1)[:, :count]
    kept = min(rows, count)
    np.testing.assert_array_equal(found[:, :kept], ids[order])
    np.testing.assert_allclose(cosines[:, :kept], np.take_along_axis(full, order, axis=1), atol=1e-6)
    assert (found[:, kept:] == -1).all()
    assert np.isneginf(cosines[:, kept:]).all()


@pytest.mark.parametrize("match", ["mean", "exemplars"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_nearest_voices(store: VoiceStore, match: str, in_memory: bool) -> None:
    searcher = Searcher(store, match, ExactIndex(store, match, in_memory=in_memory))
    for query in vectors(3, 5):
        for count in (1, 10, VOICES + 5):
            assert _names(searcher, query, count) == _sorted(store, query, match)[:count]


def test_cosines_are_those_of_float64(store: VoiceStore) -> None:
    query = vectors(1, 6)[0]
    for candidate in Searcher(store).nearest(query, 3):
        mean = np.float64(dict(store.means())[candidate.name])
        assert candidate.cosine == pytest.approx(mean @ query.astype(np.float64), abs=1e-12)
    (own, *_) = Searcher(store, "exemplars").nearest(store.enrolments("v7")[0].vector, 1)
    assert (own.name, own.cosine) == ("v7", pytest.approx(1, abs=1e-6))
    assert own.cosine <= 1


@pytest.mark.parametrize("match", ["mean", "exemplars"])
@pytest.mark.parametrize("kind", [None, "flat", "ivf", "hnsw", "memory"])
def test_an_index_knows_what_it_has_missed(store: VoiceStore, kind: str | None, match: str) -> None:
    """Voices that came, changed, went or were renamed after an index was built are found as they are now."""
    if kind == "memory":
        searcher = Searcher(store, match, ExactIndex(store, match, in_memory=True))
    else:
        pytest.importorskip("faiss", reason="faiss is not installed: pip install 'speakerkit[search]'")
        assert build_index(store, match, kind).match(f"voices.db.{match}.????????.faiss")
        searcher = open_searcher(store, match)
        assert isinstance(searcher.index, FaissIndex)
    query = vectors(1, 7)[0]
    first, second, third, *_ = _names(searcher, query, 3)
    store.remove(first)
    store.rename(second, "someone else")
    store.add(third, [_enrolment(-query, 10_000)], STAMP)
    store.add("new", [_enrolment(query + 0.1 * vectors(1, 8)[0], 10_001)], STAMP)
    expected = _sorted(store, query, match)[:2]
    assert expected == ["new", "someone else"]
    assert _names(searcher, query, 2) == expected
    if kind not in ("memory", None):
        assert isinstance(open_searcher(store, match).index, FaissIndex)
        build_index(store, match, kind)
        assert _names(open_searcher(store, match), query, 2) == expected
        assert len(list(Path(store.location).parent.glob(f"*.{match}.*.faiss"))) == 1


def test_recall_of_the_indexes(store: VoiceStore) -> None:
    """Another recording of an enrolled voice is found: always by all compared, nearly always by a part of them."""
    pytest.importorskip("faiss")
    truth = np.arange(0, VOICES, 4)
    means = [vector for _, vector in store.means()]
    queries = [means[number] + 0.3 * noise for number, noise in zip(truth, vectors(len(truth), 9), strict=True)]
    for kind, least in (("flat", 1.0), ("ivf", 0.95), ("hnsw", 0.95)):
        build_index(store, "mean", kind)
        searcher = open_searcher(store)
        hits = [
            _names(searcher, (query / np.linalg.norm(query)).astype(np.float32), 1) == [f"v{number}"]
            for query, number in zip(queries, truth, strict=True)
        ]
        assert np.mean(hits) >= least


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    """The smallest of its tables: what looks at all voices finds what the comparison of all finds."""
    pytest.importorskip("faiss")
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_identify.py"
    asked = [sys.executable, script, "--voices", "2000", "--dim", "64", "--queries", "20"]
    ran = subprocess.run(list(map(str, asked)), capture_output=True, text=True, timeout=300, check=True)
    rows = {line[:18].strip(): line[18:].split() for line in ran.stdout.splitlines()}
    for name in ("plain product", "exact, the file", "exact, in memory", "flat"):
        assert float(rows[name][3]) == 100.0
    for name in ("ivf", "hnsw"):
        assert float(rows[name][3]) >= 90.0


def test_an_index_of_another_database_is_not_used(
    store: VoiceStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that was made anew, or put back from a copy, does not know the files that lie beside it."""
    pytest.importorskip("faiss")
    copy = tmp_path / "voices.copy"
    with closing(sqlite3.connect(copy)) as backup, closing(sqlite3.connect(store.location)) as source:
        source.backup(backup)
    left = build_index(store)
    query = vectors(1, 12)[0]
    expected = _names(Searcher(store), query, 5)
    store.close()
    copy.replace(store.location)
    with open_store(store.location) as restored:
        assert left.exists()
        searcher = open_searcher(restored)
        assert isinstance(searcher.index, ExactIndex)
        assert _names(searcher, query, 5) == expected
        built = build_index(restored)
        built.unlink()
        with caplog.at_level(logging.WARNING, "speakerkit"):
            assert _names(open_searcher(restored), query, 5) == expected
        assert f"{built} is gone: all voices are compared" in caplog.text


def test_an_index_goes_with_the_last_voice(tmp_path: Path) -> None:
    """What is removed leaves no vectors behind, and another model's dimension is no trouble."""
    pytest.importorskip("faiss")
    with open_store(tmp_path / "voices.db", create=True) as store:
        store.add_all(((f"v{n}", [_enrolment(row, n)]) for n, row in enumerate(vectors(5, 0))), STAMP)
        paths = [build_index(store, match) for match in ("mean", "exemplars")]
        store.remove(*(f"v{n}" for n in range(4)))
        assert all(path.exists() for path in paths)
        store.remove("v4")
        assert not any(path.exists() for path in paths)
        store.add("other", [Enrolment.from_embedding(np.ones(3), 1.0, "0" * 64, "x.wav")], ModelStamp("b" * 64, 3))
        assert _names(open_searcher(store), np.full(3, 3**-0.5, dtype=np.float32), 2) == ["other"]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_mapped_index_starts_no_threads(store: VoiceStore, kind: str) -> None:
    """Lists in a file would be read ahead by 32 threads a query."""
    faiss = pytest.importorskip("faiss")
    build_index(store, "mean", kind)
    index = open_searcher(store).index.index
    if kind == "ivf":
        assert faiss.downcast_InvertedLists(index.invlists).prefetch_nthread == 0
    _, ids = index.search(vectors(1, 3), 5)
    assert (ids >= 0).all()


def test_more_candidates_than_a_statement_takes_values(store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    query = vectors(1, 14)[0]
    expected = _sorted(store, query, "mean")
    monkeypatch.setattr("speakerkit.verification.voiceprints.store.MOST_VALUES", 7)
    assert _names(Searcher(store), query, VOICES) == expected


def test_a_damaged_index(store: VoiceStore) -> None:
    pytest.importorskip("faiss")
    path = build_index(store)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"mean\.\w+\.faiss: is damaged"):
        open_searcher(store)


def test_without_faiss(store: VoiceStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"speakerkit\[search\]"):
        build_index(store)
    assert isinstance(store, SqliteStore)
    note = IndexNote("abcd", store.generation())
    store.note_index("mean", note)
    store.index_path("mean", note).write_bytes(b"x")
    query = vectors(1, 13)[0]
    with caplog.at_level(logging.WARNING, "speakerkit"):
        assert _names(open_searcher(store), query, 3) == _sorted(store, query, "mean")[:3]
    assert "is not used" in caplog.text
    caplog.clear()
    monkeypatch.setattr(search, "EXACT_UP_TO", 100)
    with caplog.at_level(logging.WARNING, "speakerkit"):
        open_searcher(store)
    assert "`speakerkit voices index` makes this faster" in caplog.text


def test_nothing_to_search(tmp_path: Path, store: VoiceStore) -> None:
    with open_store(tmp_path / "empty.db", create=True) as empty:
        with pytest.raises(DataError, match="holds no voices"):
            open_searcher(empty).nearest(vectors(1, 0)[0], 1)
        if "faiss" in sys.modules:
            with pytest.raises(DataError, match="holds no voices"):
                build_index(empty)
    with pytest.raises(DataError, match=r"voiceprints of 16 values, not of shape \(3,\)"):
        Searcher(store).nearest(np.ones(3, dtype=np.float32), 1)

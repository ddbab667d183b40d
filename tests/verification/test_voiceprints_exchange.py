"""Voiceprints from one store into another through files: nothing changes on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from speakerkit.data.ark import Embeddings, read_embeddings, write_embeddings
from speakerkit.errors import DataError
from speakerkit.verification.cosine import score_cosine
from speakerkit.verification.trials import Trials
from speakerkit.verification.voiceprints.exchange import export_voices, read_voices
from speakerkit.verification.voiceprints.store import Enrolment, ModelStamp, VoiceStore, open_store

DIM = 12
STAMP = ModelStamp("c" * 64, DIM)
NAMES = ("a", "Ana Ng", "日本 語", "100 % sure")
FORMATS = ("npy", "npz", "jsonl", "ark")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoiceStore]:
    """Four voices with one to four recordings."""
    rng = np.random.default_rng(0)
    with open_store(tmp_path / "voices.db", create=True) as opened:
        for number, name in enumerate(NAMES):
            items = [
                Enrolment.from_embedding(
                    5 * rng.normal(size=DIM), 2.5, f"{10 * number + n:064x}", f"{name} {n}.wav", 1.5
                )
                for n in range(number + 1)
            ]
            opened.add(name, items, STAMP)
        yield opened


@pytest.mark.parametrize("form", FORMATS)
def test_recordings_come_back_to_the_bit(store: VoiceStore, tmp_path: Path, form: str) -> None:
    path = export_voices(store, tmp_path / "out", form, "exemplars")
    with open_store(tmp_path / "other.db", create=True) as other:
        added = read_voices(path).add_to(other)
        assert sum(item.new for item in added) == 10
        assert other.voices() == store.voices()
        assert other.stamp() == STAMP
        for name in NAMES:
            ours, theirs = (sorted(each.enrolments(name), key=lambda item: item.sha256) for each in (store, other))
            for one, two in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one.vector, two.vector)
                assert {**vars(one), "vector": 0} == {**vars(two), "vector": 0}
        for (name, one), (same, two) in zip(sorted(store.means()), sorted(other.means()), strict=True):
            assert name == same
            np.testing.assert_array_equal(one, two)
        again = read_voices(path).add_to(other)
        assert sum(item.new for item in again) == 0
        assert sum(len(item.known) for item in again) == 10


@pytest.mark.parametrize("form", FORMATS)
def test_inner_products_of_means_are_cosines(store: VoiceStore, tmp_path: Path, form: str) -> None:
    path = export_voices(store, tmp_path / "out", form)
    written = read_embeddings(path)
    assert written.keys == sorted(("a", "Ana%20Ng", "日本%20語", "100%20%25%20sure"))
    products = written.vectors.astype(np.float64) @ written.vectors.T.astype(np.float64)
    pairs = [(one, two) for one in written.keys for two in written.keys]
    cosines = score_cosine(written, Trials.from_pairs(*zip(*pairs, strict=True))).scores
    np.testing.assert_allclose(products.ravel(), cosines, atol=1e-6)
    with open_store(tmp_path / "other.db", create=True) as other:
        read_voices(path).add_to(other)
        assert [voice.name for voice in other.voices()] == sorted(NAMES)
        for (_, one), (_, two) in zip(sorted(store.means()), sorted(other.means()), strict=True):
            np.testing.assert_array_equal(one, two)


def test_what_stands_beside(store: VoiceStore, tmp_path: Path) -> None:
    export_voices(store, tmp_path / "out.npy")
    note = json.loads((tmp_path / "out.model.json").read_text())
    assert note == {"sha256": STAMP.digest, "dimension": DIM, "normalisation": "length"}
    rows = [json.loads(line) for line in (tmp_path / "out.voices.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["key"] for row in rows] == read_embeddings(tmp_path / "out.npy").keys
    assert {row["name"]: (row["recordings"], row["seconds"], row["speech"]) for row in rows}["日本 語"] == (3, 7.5, 4.5)


def test_embeddings_of_others(tmp_path: Path) -> None:
    """Plain embeddings: the model is given, keys are names or utt2spk says whose they are."""
    vectors = np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)
    path = write_embeddings(tmp_path / "e.npz", Embeddings(["u1", "u2", "u3"], vectors))
    with open_store(tmp_path / "voices.db", create=True) as store:
        with pytest.raises(DataError, match=r"has no e\.model\.json beside it"):
            read_voices(path).add_to(store)
        read_voices(path, stamp=STAMP, speakers={"u1": "s", "u2": "s", "u3": "t"}).add_to(store)
        assert [(voice.name, voice.recordings) for voice in store.voices()] == [("s", 2), ("t", 1)]
        lengths = [item.magnitude for _, item in store.recordings()]
        np.testing.assert_allclose(lengths, np.linalg.norm(vectors.astype(np.float64), axis=1))
        with pytest.raises(DataError, match="'u2' has no speaker"):
            read_voices(path, stamp=STAMP, speakers={"u1": "s"}).add_to(store)
        read_voices(path, stamp=STAMP).add_to(store)
        assert len(store) == 5


def test_the_model_must_be_the_same(store: VoiceStore, tmp_path: Path) -> None:
    path = export_voices(store, tmp_path / "out.npy")
    with open_store(tmp_path / "other.db", create=True) as other:
        with pytest.raises(DataError, match=r"holds vectors of model cccccccccccc .*, not of dddddddddddd"):
            read_voices(path, stamp=ModelStamp("d" * 64, DIM))
        item = Enrolment.from_embedding(np.ones(DIM), 1.0, "0" * 64, "x.wav")
        other.add("x", [item], ModelStamp("d" * 64, DIM))
        with pytest.raises(DataError, match="holds voiceprints of model dddddddddddd"):
            read_voices(path).add_to(other)
        assert len(other) == 1


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("out.model.json", "{", "does not tell which model"),
        ("out.model.json", '{"sha256": 3}', "does not tell which model"),
        ("out.model.json", '{"sha256": "c", "dimension": 5}', "does not tell which model"),
        ("out.voices.jsonl", '{"key": "a"}\n', "line 1 tells of no voiceprint"),
        ("out.voices.jsonl", "[" * 100_000, "line 1 tells of no voiceprint"),
        ("out.voices.jsonl", '{"key": "a", "name": "a", "seconds": []}\n', "has bad details of 'a'"),
        ("out.voices.jsonl", '{"key": "a", "name": "a", "seconds": NaN}\n', "has bad details of 'a'"),
        ("out.voices.jsonl", '{"key": "a", "name": "a", "speech": -1}\n', "has bad details of 'a'"),
        ("out.voices.jsonl", '{"key": "a", "name": "a", "magnitude": 1e999}\n', "has bad details of 'a'"),
    ],
)
def test_damaged_notes(store: VoiceStore, tmp_path: Path, name: str, content: str, fault: str) -> None:
    path = export_voices(store, tmp_path / "out.npy")
    (tmp_path / name).write_text(content)
    with open_store(tmp_path / "other.db", create=True) as other:
        with pytest.raises(DataError, match=fault) as caught:
            read_voices(path).add_to(other)
        assert name in str(caught.value)
        assert len(other) == 0


def test_nothing_to_export(tmp_path: Path) -> None:
    with (
        open_store(tmp_path / "voices.db", create=True) as empty,
        pytest.raises(DataError, match="holds no voices"),
    ):
        export_voices(empty, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()

"""Networks applied to recordings: windows and blocks against networks whose answer is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from speakerkit.bundle import read_bundle
from speakerkit.diarization import neural
from speakerkit.diarization.activity import Binarisation, Frames
from speakerkit.diarization.bundle import DiarizationModel, DiarizationModelConfig
from speakerkit.diarization.eend import EEND
from speakerkit.diarization.neural import (
    _same_speakers,
    diarize_end_to_end,
    eend_probabilities,
    refine,
    speaker_voices,
    tsvad_probabilities,
)
from speakerkit.diarization.tsvad import TSVAD
from speakerkit.diarization.turns import Diarization, Turn, without
from speakerkit.embedding.embedder import Embedder
from speakerkit.errors import BundleError, ConfigError
from speakerkit.features import FrontEnd
from tests.conftest import speech_like

RATE = 8000
FRAME = 80  # samples of a frame of the networks below


def levels(samples: Tensor) -> Tensor:
    """(B, T) mean of the samples of each frame."""
    count = samples.shape[1] // FRAME
    return samples[:, : count * FRAME].unflatten(1, (count, FRAME)).mean(2)


class Levels(TSVAD):
    """Logits are the level of a frame times the first value of an embedding, whatever is heard elsewhere."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.slots, self.min_samples, self.frames = 2, 2 * FRAME, Frames(FRAME / RATE, FRAME / RATE / 2)

    def forward(self, samples: Tensor, voices: Tensor) -> Tensor:
        return levels(samples)[:, :, None] * voices[:, None, :, 0]


class Codes(EEND):
    """Speaker n speaks where bit n of a frame's level (in hundredths) is set; each block has its own order of them."""

    def __init__(self, orders: list[list[int]]) -> None:
        nn.Module.__init__(self)
        self.min_samples, self.frames, self.orders, self.calls = (
            FRAME,
            Frames(FRAME / RATE, FRAME / RATE / 2),
            orders,
            0,
        )

    def forward(self, samples: Tensor, count: int) -> tuple[Tensor, Tensor]:
        order = self.orders[self.calls % len(self.orders)]
        self.calls += 1
        codes = (100 * levels(samples)).round().long()
        active = ((codes[:, :, None] >> torch.tensor(order, dtype=torch.long)) & 1).float()  # (1, T, speakers)
        padded = nn.functional.pad(active, (0, max(0, count - len(order))))[:, :, :count]
        exists = torch.where(torch.arange(count) < len(order), 9.0, -9.0)
        return 20 * padded - 10, exists[None]


def diarizer(network: TSVAD | EEND, task: str = "tsvad", sha256: str = "") -> DiarizationModel:
    config = DiarizationModelConfig(task, FrontEnd(sample_rate=RATE), {}, 2.0, None, 16, sha256)  # type: ignore[arg-type]
    return DiarizationModel(Path("model"), config, network, torch.device("cpu"), "0" * 64)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize("count", [1, 79, 200, 8000, 16000, 16001, 24079, 100_000, 560_123])
def test_windows_cover_a_recording_whatever_its_length(count: int) -> None:
    samples = np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)
    voices = np.zeros((5, 16), dtype=np.float32)  # three groups for two slots
    voices[:, 0] = [3, -2, 1, 0, 7]
    found = tsvad_probabilities(diarizer(Levels()), samples, voices, rate=RATE)
    assert found.seconds == pytest.approx(count / RATE)
    heard = np.resize(samples, max(count, 2 * FRAME)).astype(np.float64)
    means = heard[: len(heard) // FRAME * FRAME].reshape(-1, FRAME).mean(axis=1)
    expected = sigmoid(means[:, None] * voices[:, 0])
    assert len(found.values) == max(1, count // FRAME)
    np.testing.assert_allclose(found.values, expected[: len(found.values)], atol=1e-6)


def test_file_and_array_are_the_same(write_wav: Callable[..., Path]) -> None:
    from speakerkit.audio import load_audio

    path = write_wav("a.wav", 5.0, RATE)
    voices = np.ones((1, 16), dtype=np.float32)
    one = tsvad_probabilities(diarizer(Levels()), path, voices)
    other = tsvad_probabilities(diarizer(Levels()), load_audio(path).samples, voices, rate=RATE)
    assert np.array_equal(one.values, other.values)


def test_what_does_not_belong_together_is_refused(onnx_bundle: Path) -> None:
    embedder = Embedder(read_bundle(onnx_bundle))
    sound, whole = speech_like(3.0, RATE), Diarization("x", (Turn(0.0, 3.0, "a"),))
    with pytest.raises(BundleError, match="embeddings of 16"):
        tsvad_probabilities(diarizer(Levels()), sound, np.zeros((2, 15), dtype=np.float32), rate=RATE)
    with pytest.raises(BundleError, match="task 'eend'"):
        refine(whole, sound, diarizer(Codes([[0]]), "eend"), embedder, rate=RATE)
    with pytest.raises(BundleError, match="task 'tsvad'"):
        eend_probabilities(diarizer(Levels()), sound, rate=RATE)
    with pytest.raises(BundleError, match="another model"):
        refine(whole, sound, diarizer(Levels(), sha256="0" * 64), embedder, rate=RATE)
    with pytest.raises(ConfigError, match="num_speakers"):
        eend_probabilities(diarizer(Codes([[0]]), "eend"), sound, rate=RATE, num_speakers=0)


def test_voices_are_of_speech_alone(onnx_bundle: Path) -> None:
    embedder = Embedder(read_bundle(onnx_bundle))
    sound = speech_like(12.0, 16000)
    turns = (Turn(0.0, 4.0, "a"), Turn(3.0, 6.0, "b"), Turn(8.0, 9.0, "a"), Turn(3.2, 3.4, "c"), Turn(11.0, 11.05, "d"))
    found = speaker_voices(Diarization("x", turns, 12.0), sound, embedder, rate=16000)
    alone = {"a": [(0, 3), (8, 9)], "b": [(4, 6)]}
    assert set(found) == {"a", "b"}  # of c 0.2 s, of d 0.05 s: less than the model takes
    for label, spans in alone.items():
        parts = np.concatenate([sound[16000 * first : 16000 * last] for first, last in spans])
        np.testing.assert_allclose(found[label], embedder.embed(parts, rate=16000), atol=1e-5)


def test_long_turns_give_a_voice_where_sums_are_not_exact(onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural, "VOICE_SECONDS", 2.0)
    turns = (Turn(0.1, 1.6, "a"), Turn(2.1, 3.5, "a"), Turn(3.6, 4.9, "a"))
    sound = speech_like(5.0, 16000)
    embedder = Embedder(read_bundle(onnx_bundle))
    found = speaker_voices(Diarization("x", turns, 5.0), sound, embedder, rate=16000)
    parts = np.concatenate([sound[1600:25600], sound[33600:41600]])  # 1.5 s, and the 0.5 s that 2 s lack
    np.testing.assert_allclose(found["a"], embedder.embed(parts, rate=16000), atol=1e-5)


def test_refining_keeps_speakers_and_adds_overlap(onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(read_bundle(onnx_bundle))
    sound = speech_like(6.0, 16000)
    before = Diarization(
        "x", (Turn(0.0, 3.0, "a"), Turn(3.0, 5.0, "b"), Turn(5.0, 6.0, "c"), Turn(5.9, 5.95, "d")), 6.0
    )
    frames, seen = Frames(0.1, 0.05), []

    def heard(model: DiarizationModel, source: object, voices: np.ndarray, **_: object) -> neural.FrameProbabilities:
        seen.append(voices)
        values = np.zeros((60, 3), dtype=np.float32)
        values[:35, 0] = values[25:60, 1] = 0.9  # c is nowhere heard
        return neural.FrameProbabilities(values, frames, 6.0)

    monkeypatch.setattr(neural, "tsvad_probabilities", heard)
    after = refine(before, sound, diarizer(Levels()), embedder, rate=16000, rule=Binarisation(median=1), iterations=2)
    assert after.turns == (Turn(0.0, 3.5, "a"), Turn(2.5, 6.0, "b"), Turn(5.0, 6.0, "c"), Turn(5.9, 5.95, "d"))
    assert after.turns[0].confidence == pytest.approx(0.9)
    assert after.settings["tsvad"]["iterations"] == 2
    np.testing.assert_allclose(seen[0][0], embedder.embed(sound[: 3 * 16000], rate=16000), atol=1e-5)
    np.testing.assert_allclose(seen[1][0], embedder.embed(sound[: int(2.5 * 16000)], rate=16000), atol=1e-5)
    np.testing.assert_allclose(after.speakers["a"].embedding, seen[1][0])
    known = refine(
        before, sound, diarizer(Levels()), embedder, rate=16000, rule=Binarisation(median=1), speech=[(1.0, 5.0)]
    )
    assert [turn for turn in known.turns if turn.speaker in "ab"] == [Turn(1.0, 3.5, "a"), Turn(2.5, 5.0, "b")]


@pytest.mark.parametrize(("end", "blurred"), [(12.0, True), (3.5, False)])
def test_who_is_heard_with_everybody_keeps_the_turns_of_before(
    onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch, end: float, blurred: bool
) -> None:
    before = Diarization("x", (Turn(0.0, 2.0, "a"), Turn(2.0, 12.0, "b")), 12.0)

    def heard(*_: object, **__: object) -> neural.FrameProbabilities:
        values = np.zeros((120, 2), dtype=np.float32)
        values[: round(10 * end), 0] = values[20:, 1] = 0.9
        return neural.FrameProbabilities(values, Frames(0.1, 0.05), 12.0)

    monkeypatch.setattr(neural, "tsvad_probabilities", heard)
    embedder = Embedder(read_bundle(onnx_bundle))
    after = refine(before, speech_like(12.0, 16000), diarizer(Levels()), embedder, rate=16000)
    expected = before.turns if blurred else (Turn(0.0, end, "a"), Turn(2.0, 12.0, "b"))
    assert after.turns == expected


@given(st.lists(st.integers(0, 30), max_size=12), st.lists(st.integers(0, 30), max_size=12))
def test_spans_without_holes_by_counting(first: list[int], second: list[int]) -> None:
    def spans(numbers: list[int]) -> list[tuple[float, float]]:
        edges = sorted(set(numbers))
        return [(float(a), float(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)]

    def cells(listed: list[tuple[float, float]]) -> set[int]:
        return {cell for start, end in listed for cell in range(int(start), int(end))}

    left = without(spans(first), spans(second))
    assert cells(list(left)) == cells(spans(first)) - cells(spans(second))
    assert all(start < end for start, end in left)
    assert list(left) == sorted(left)


def coded(patterns: list[tuple[float, set[int]]]) -> np.ndarray:
    """Sound for :class:`Codes`: (seconds, speakers) one after another."""
    parts = [np.full(round(seconds * RATE), sum(1 << n for n in who) / 100) for seconds, who in patterns]
    return np.concatenate(parts).astype(np.float32)


PATTERN: list[tuple[float, set[int]]] = [(2.0, {0}), (1.0, {1}), (1.0, {0, 1}), (1.0, {2}), (1.0, {1})]


def test_speakers_of_blocks_are_matched() -> None:
    sound = coded(PATTERN * 5)  # 30 s, in blocks of 10 s
    model = diarizer(Codes([[0, 1, 2], [2, 0, 1], [1, 0, 2]]), "eend")
    found = eend_probabilities(model, sound, rate=RATE, block_seconds=10.0)
    codes = np.round(100 * sound.reshape(-1, FRAME).mean(axis=1)).astype(int)
    expected = np.stack([(codes >> bit) & 1 for bit in range(3)], axis=1)
    assert model.network.calls == 5  # type: ignore[union-attr]
    assert np.array_equal(found.values > 0.5, expected == 1)
    whole = eend_probabilities(diarizer(Codes([[0, 1, 2]]), "eend"), sound, rate=RATE)
    assert np.array_equal(whole.values > 0.5, expected == 1)


def test_end_to_end_turns() -> None:
    found = diarize_end_to_end(diarizer(Codes([[2, 1, 0]]), "eend"), coded(PATTERN), "x", rate=RATE)
    assert [(turn.speaker, round(turn.start, 2), round(turn.end, 2)) for turn in found.turns] == [
        ("A", 0.0, 2.0),
        ("B", 2.0, 4.0),
        ("A", 3.0, 4.0),
        ("C", 4.0, 5.0),
        ("B", 5.0, 6.0),
    ]
    one = diarize_end_to_end(diarizer(Codes([[2, 1, 0]]), "eend"), coded(PATTERN), "x", rate=RATE, num_speakers=1)
    assert one.labels == ("A",)
    nobody = diarize_end_to_end(diarizer(Codes([[]]), "eend"), coded(PATTERN), "x", rate=RATE)
    assert nobody.turns == ()
    known = diarize_end_to_end(
        diarizer(Codes([[]]), "eend"), coded(PATTERN), "x", rate=RATE, speech=[(0.5, 2.0), (3.0, 4.2)]
    )
    assert known.turns == (Turn(0.5, 2.0, "A"), Turn(3.0, 4.2, "A"))
    assert nobody.duration == 6.0


def test_matching_takes_new_speakers_until_there_is_no_room() -> None:
    earlier = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    values = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    assert _same_speakers(earlier, values, 3, 9) == [2, 3, 0]
    assert _same_speakers(earlier, values, 3, 3) == [2, 1, 0]
    assert _same_speakers(np.zeros((0, 0), dtype=np.float32), np.zeros((0, 2), dtype=np.float32), 2, 2) == [0, 1]

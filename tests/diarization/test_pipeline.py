"""From recordings to turns: made-up conversations, nothing to hear, counts, channels, names, one at a time."""

from __future__ import annotations

import logging
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import speakerkit as sk
from speakerkit.diarization import neural
from speakerkit.diarization.bundle import DiarizationModel
from speakerkit.diarization.bundle import load as open_network
from speakerkit.diarization.clustering import METHODS, settings_for
from speakerkit.diarization.pipeline import DiarizationSettings, Diarizer, named
from speakerkit.diarization.segments import exclusive_turns
from speakerkit.diarization.turns import Diarization, Speaker, Turn
from speakerkit.diarization.vad import VadSettings
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.errors import AudioError, BundleError, ConfigError, DataError, MissingExtraError
from tests.conftest import speech_like
from tests.diarization.conversation import RATE, agreement, conversation, pitch_embedder
from tests.diarization.voices import plda_backend

ENERGY = VadSettings("energy", pad=0)


@pytest.fixture(scope="module")
def ear(onnx_bundle: Path) -> Embedder:
    return pitch_embedder(onnx_bundle)


def settings_of(method: str = "ahc", **options: object) -> DiarizationSettings:
    return DiarizationSettings(ENERGY, clustering=settings_for(method, **options))


@pytest.mark.parametrize("method", [*METHODS])
def test_every_method_finds_who_speaks(ear: Embedder, method: str) -> None:
    samples, true = conversation(3, 14)
    diarizer = Diarizer(ear, settings_of(method), backend=plda_backend(16, within=0.01))
    found = diarizer.diarize(samples, "talk", rate=RATE)
    assert found.labels == ("A", "B", "C")
    assert agreement(found, true) > 0.97
    assert sum(found.talk_time().values()) == pytest.approx(sum(true.talk_time().values()), rel=0.03)
    assert all(turn.confidence is not None and 0 <= turn.confidence <= 1 for turn in found.turns)
    assert found.settings["clustering"]["method"] == method
    assert found.settings["vad"]["method"] == "energy"
    assert found.settings["model"] == ear.bundle.digest()


@pytest.mark.parametrize("speakers", [1, 12])
@pytest.mark.parametrize("method", ["ahc", "spectral"])
def test_one_speaker_and_twelve(ear: Embedder, speakers: int, method: str) -> None:
    samples, true = conversation(speakers, 36, seed=1)
    found = Diarizer(ear, settings_of(method)).diarize(samples, rate=RATE)
    assert len(found.labels) == speakers
    assert agreement(found, true) > 0.97


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_rates(ear: Embedder, rate: int) -> None:
    samples, true = conversation(3, 9, rate=rate)
    found = Diarizer(ear, settings_of()).diarize(samples, rate=rate)
    assert len(found.labels) == 3
    assert agreement(found, true) > 0.95
    assert found.duration == pytest.approx(len(samples) / rate)


def test_scales_find_changes_without_pause(ear: Embedder) -> None:
    samples, true = conversation(3, 12, seconds=(1.2, 2.5))
    diarizer = Diarizer(ear, replace(settings_of(), windows=(1.5, 1.0, 0.5)))
    spans = [(0.5, true.duration)]  # pauses and all: a change is where the sound says so
    found = diarizer.diarize(samples, rate=RATE, speech=spans)
    assert agreement(found, true) > 0.9
    assert found.speakers["A"].embedding is not None
    assert found.speakers["A"].embedding.shape == (16,)
    assert found.settings["windows"] == {"lengths": [1.5, 1.0, 0.5], "hop": 0.25, "minimum": 0.1}


def test_embeddings_are_mean_directions(ear: Embedder) -> None:
    samples, true = conversation(2, 8)
    found = Diarizer(ear, settings_of()).diarize(samples, rate=RATE, speech=true.speech)
    for number, label in enumerate(found.labels):
        vector = found.speakers[label].embedding
        assert vector is not None
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert vector.argmax() == number  # its band


@settings(max_examples=40)
@given(data=st.data())
def test_the_number_asked_for_is_kept(data: st.DataObject, onnx_bundle: Path) -> None:
    samples, true = conversation(
        data.draw(st.integers(1, 4)), data.draw(st.integers(4, 7)), data.draw(st.integers(0, 9))
    )
    method = data.draw(st.sampled_from([*METHODS]))
    low = data.draw(st.integers(1, 6))
    high = data.draw(st.integers(low, 8))
    exact = data.draw(st.booleans())
    options = {"num_speakers": low} if exact else {"min_speakers": low, "max_speakers": high}
    chosen = replace(settings_of(method, **options), exclusive=data.draw(st.booleans()))
    diarizer = Diarizer(pitch_embedder(onnx_bundle), chosen, backend=plda_backend(16))
    found = diarizer.diarize(samples, rate=RATE, speech=true.speech)
    assert low <= len(found.labels) <= (low if exact else high)
    assert set(found.speakers) == set(found.labels)


def test_more_speakers_than_windows_is_an_error(ear: Embedder) -> None:
    samples, _ = conversation(1, 1)
    diarizer = Diarizer(ear, settings_of(num_speakers=3))
    with pytest.raises(ConfigError, match="num_speakers: is 3, the recording has 1 windows of speech"):
        diarizer.diarize(samples, rate=RATE, speech=[(0.5, 1.0)])


def tone() -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE).astype(np.float32)


@pytest.mark.parametrize("vad", ["silero", "energy"])
@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(3 * RATE, dtype=np.float32),
        1e-5 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32),
        tone(),
        np.array([0.5], dtype=np.float32),
        np.ones(160, dtype=np.float32),
    ],
    ids=["zeros", "silence", "tone", "one sample", "ten ms"],
)
def test_no_speech_is_no_turns_and_a_warning(
    onnx_bundle: Path, samples: np.ndarray, vad: str, caplog: pytest.LogCaptureFixture
) -> None:
    diarizer = Diarizer(load(onnx_bundle, "cpu"), DiarizationSettings(VadSettings(vad)))
    with caplog.at_level(logging.WARNING, "speakerkit.diarization"):
        found = diarizer.diarize(samples, "quiet", rate=RATE)
    assert found.turns == ()
    assert found.to_rttm() == ""
    assert found.duration == pytest.approx(len(samples) / RATE)
    assert "quiet: no speech was found" in caplog.text


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("count", [1, 2, 50, 400, 4800, 8000])
def test_given_speech_of_any_length(onnx_bundle: Path, count: int, rate: int) -> None:
    samples = speech_like(1.0, rate)[:count]
    diarizer = Diarizer(load(onnx_bundle, "cpu"), DiarizationSettings())
    found = diarizer.diarize(samples, rate=rate, speech=[(0.0, 5.0)])
    assert found.speech == (((0.0, count / rate),) if count >= 0.01 * rate else ())
    assert all(np.isfinite(speaker.embedding).all() for speaker in found.speakers.values())


def test_given_digital_silence_is_no_speech(ear: Embedder) -> None:
    samples, _ = conversation(1, 1, seconds=(3.0, 3.0))
    samples[round(2.0 * RATE) :] = 0
    found = Diarizer(ear, settings_of()).diarize(samples, rate=RATE, speech=[(0.5, 4.0)])
    assert found.speech[-1][1] < 3.0
    assert found.speech[0][0] == 0.5
    nothing = Diarizer(ear, settings_of()).diarize(np.zeros(RATE, np.float32), rate=RATE, speech=[(0.0, 1.0)])
    assert nothing.turns == ()


def test_channels_are_recordings_of_their_own(ear: Embedder, tmp_path: Path) -> None:
    left, true = conversation(1, 3, seed=3)
    right = np.zeros_like(left)
    right[: RATE * 4] = 0.3 * speech_like(4.0)
    soundfile.write(tmp_path / "call.wav", np.stack([left, right], axis=1), RATE)
    diarizer = Diarizer(ear, settings_of(num_speakers=1))
    first, second = (diarizer.diarize(tmp_path / "call.wav", channel=number) for number in (0, 1))
    assert first.channel == 1
    assert second.channel == 2
    assert first.speech != second.speech
    assert second.speech[-1][1] == pytest.approx(4.0, abs=0.3)
    assert agreement(first, true) > 0.97
    assert {line.split()[2] for line in second.to_rttm().splitlines()} == {"2"}
    assert diarizer.diarize(tmp_path / "call.wav").channel == 1
    with pytest.raises(AudioError, match="channel"):
        diarizer.diarize(tmp_path / "call.wav", channel=2)


def test_the_same_bytes_for_any_number_of_threads(onnx_bundle: Path) -> None:
    samples, true = conversation(3, 12)
    texts = set()
    for threads, limit in ((1, 1), (3, 1), (8, 8), (1, 8)):
        with threadpool_limits(limit):
            diarizer = Diarizer(load(onnx_bundle, "cpu", threads), DiarizationSettings())
            texts.add(diarizer.diarize(samples, "talk", rate=RATE, speech=true.speech).to_json())
    assert len(texts) == 1


def test_file_bytes_and_stream_are_the_same(ear: Embedder, tmp_path: Path) -> None:
    samples, _ = conversation(2, 6)
    path = tmp_path / "talk.wav"
    soundfile.write(path, samples, RATE)
    diarizer = Diarizer(ear, settings_of())
    expected = diarizer.diarize(path).to_rttm()
    assert expected.startswith("SPEAKER talk 1 ")
    assert diarizer.diarize(path.read_bytes(), "talk").to_rttm() == expected
    with path.open("rb") as stream:
        assert diarizer.diarize(stream, "talk").to_rttm() == expected


def test_memory_does_not_grow_with_the_recording(ear: Embedder, tmp_path: Path) -> None:
    samples, _ = conversation(2, 4, seconds=(3.0, 3.0))
    peaks = []
    for minutes in (5, 20):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1) as stream:
            for _ in range(round(minutes * 60 * RATE / len(samples))):
                stream.write(samples)
        tracemalloc.start()
        found = Diarizer(ear, settings_of()).diarize(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        path.unlink()
        assert len(found.labels) == 2
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 20 * 60 * RATE * 4 / 2  # half of the recording's samples


TURNS = st.lists(
    st.builds(
        lambda start, length, speaker, sure: Turn(start / 10, (start + length) / 10, speaker, sure),
        st.integers(0, 100),
        st.integers(1, 60),
        st.sampled_from("abcde"),
        st.one_of(st.none(), st.floats(0, 1)),
    ),
    max_size=12,
)


@given(TURNS)
@settings(max_examples=200)
def test_one_at_a_time_keeps_the_speech_and_everybody(turns: list[Turn]) -> None:
    whole = Diarization("a", tuple(turns))
    alone = Diarization("a", exclusive_turns(whole.turns))
    assert alone.overlap == ()
    np.testing.assert_allclose(alone.speech, whole.speech)
    assert set(alone.labels) == set(whole.labels)
    for turn in alone.turns:  # nobody gets what was not theirs
        middle = (turn.start + turn.end) / 2
        assert any(each.speaker == turn.speaker and each.start <= middle <= each.end for each in whole.turns)


def test_the_surest_goes_on() -> None:
    turns = [Turn(0, 4, "a", 0.6), Turn(3, 6, "b", 0.9), Turn(5, 8, "c", 0.9)]
    assert exclusive_turns(turns) == (Turn(0, 3, "a"), Turn(3, 6, "b"), Turn(6, 8, "c"))
    hidden = [Turn(0, 4, "a", 0.6), Turn(1, 3, "b", 0.1)]
    assert exclusive_turns(hidden) == (Turn(0, 2, "a"), Turn(2, 3, "b"), Turn(3, 4, "a"))


def labelled(*labels: str) -> Diarization:
    """Turns of a second each; a label's embedding has a one at its place in the alphabet."""
    turns = tuple(Turn(place, place + 1, label) for place, label in enumerate(labels))
    speakers = {label: Speaker(label, np.eye(26, dtype=np.float32)[ord(label) - 65]) for label in labels}
    return Diarization("a", turns, speakers=speakers)


def namer(**known: tuple[str, float]) -> Callable[[np.ndarray], tuple[str, float] | None]:
    return lambda vector: known.get(chr(65 + int(vector.argmax())))


def test_known_voices_have_their_names() -> None:
    found = named(labelled("A", "B", "C"), namer(B=("ana", 0.8)))
    assert found.labels == ("A", "ana", "C")
    assert found.speakers["ana"].cosine == 0.8
    assert found.speakers["ana"].label == "ana"
    assert found.speakers["A"].cosine is None
    assert set(found.speakers) == {"A", "ana", "C"}


def test_no_stranger_has_a_known_name() -> None:
    found = named(labelled("A", "B", "C"), namer(B=("A", 0.8)))
    assert found.labels == ("D", "A", "C")
    assert found.speakers["A"].cosine == 0.8
    assert found.speakers["D"].cosine is None


def test_labels_of_one_voice_become_one_if_they_may() -> None:
    known = namer(A=("ana", 0.7), C=("ana", 0.9), B=("ben", 0.9))
    merged = named(labelled("A", "B", "C"), known)
    assert merged.labels == ("ana", "ben")
    assert merged.speakers["ana"].cosine == 0.9
    kept = named(labelled("A", "B", "C"), known, least=3)
    assert kept.labels == ("A", "ben", "ana")


@pytest.fixture(scope="module")
def networks(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DiarizationModel]:
    pytest.importorskip("torch")
    from tests.diarization.networks import write_eend, write_tsvad

    folder = tmp_path_factory.mktemp("networks")
    paths = {"tsvad": write_tsvad(folder / "tsvad", small_bundle), "eend": write_eend(folder / "eend")}
    return {name: open_network(path, "cpu") for name, path in paths.items()}


def test_refined_by_tsvad(onnx_bundle: Path, networks: dict[str, DiarizationModel]) -> None:
    samples, true = conversation(2, 6)
    embedder, given = load(onnx_bundle, "cpu"), {"rate": RATE, "speech": true.speech}
    plain = settings_of(num_speakers=2)
    before = Diarizer(embedder, plain).diarize(samples, **given)
    found = Diarizer(embedder, replace(plain, refinements=2), refiner=networks["tsvad"]).diarize(samples, **given)
    expected = neural.refine(before, samples, networks["tsvad"], embedder, rate=RATE, speech=true.speech, iterations=2)
    assert found.turns == expected.turns != before.turns
    assert found.labels == ("A", "B")
    np.testing.assert_allclose(found.speech, true.speech)
    assert found.settings["tsvad"]["model"] == networks["tsvad"].sha256
    assert found.settings["tsvad"]["iterations"] == 2
    alone = Diarizer(embedder, replace(plain, exclusive=True), refiner=networks["tsvad"]).diarize(samples, **given)
    assert alone.overlap == ()


def test_end_to_end_keeps_the_number_asked_for(onnx_bundle: Path, networks: dict[str, DiarizationModel]) -> None:
    samples, true = conversation(2, 6)
    embedder, given = load(onnx_bundle, "cpu"), {"rate": RATE, "speech": true.speech}
    diarizer = Diarizer(embedder, settings_of(num_speakers=2), end_to_end=networks["eend"])
    found = diarizer.diarize(samples, "talk", **given)
    expected = neural.diarize_end_to_end(
        networks["eend"], samples, "talk", rate=RATE, num_speakers=2, speech=true.speech
    )
    assert found.turns == expected.turns
    assert found.labels == ("A", "B")
    np.testing.assert_allclose(found.speech, true.speech)
    known = [each.embedding for each in found.speakers.values() if each.embedding is not None]
    assert known  # of whom there is too little to embed has none
    np.testing.assert_allclose(np.linalg.norm(known, axis=1), 1, atol=1e-6)
    assert found.settings["eend"]["model"] == networks["eend"].sha256
    assert "clustering" not in found.settings
    many = Diarizer(embedder, settings_of(max_speakers=3), end_to_end=networks["eend"])
    with pytest.raises(DataError, match="has 20 speakers, 3 were asked for"):
        many.diarize(samples, **given)


def test_networks_that_do_not_belong_are_refused_at_once(
    onnx_bundle: Path, networks: dict[str, DiarizationModel]
) -> None:
    embedder = load(onnx_bundle, "cpu")
    with pytest.raises(BundleError, match="task 'eend'; give one of task tsvad"):
        Diarizer(embedder, refiner=networks["eend"])
    with pytest.raises(BundleError, match="task 'tsvad'; give one of task eend"):
        Diarizer(embedder, end_to_end=networks["tsvad"])
    with pytest.raises(ConfigError, match="one of the two"):
        Diarizer(embedder, refiner=networks["tsvad"], end_to_end=networks["eend"])
    strange = replace(networks["tsvad"], config=replace(networks["tsvad"].config, embedder_sha256="0" * 64))
    with pytest.raises(BundleError, match="another model"):
        Diarizer(embedder, refiner=strange)


def test_settings_that_cannot_be(ear: Embedder) -> None:
    for bad in (
        {"windows": ()},
        {"windows": (0.0,)},
        {"windows": (1.5,), "hop": 2.0},
        {"batch_size": 0},
        {"refinements": 0},
        {"windows": (1.5, 0.5), "clustering": settings_for("vbx")},
    ):
        with pytest.raises(ConfigError):
            DiarizationSettings(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="plda train"):
        Diarizer(ear, settings_of("vbx"))


def test_in_one_call(onnx_bundle: Path, write_wav: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav("my talk.wav", 6.0)
    found = sk.diarize(path, model=onnx_bundle, vad=ENERGY, cluster="ahc", num_speakers=2, device="cpu")
    assert found.recording == "my talk"
    assert found.labels == ("A", "B")
    monkeypatch.setenv("SPEAKERKIT_MODEL", str(onnx_bundle))
    again = sk.diarize(path, vad=ENERGY, cluster="ahc", num_speakers=2, device="cpu")
    assert again.to_json() == found.to_json()
    monkeypatch.delenv("SPEAKERKIT_MODEL")
    with pytest.raises(ConfigError, match="SPEAKERKIT_MODEL"):
        sk.diarize(path)
    with pytest.raises(ConfigError, match="is no option of ahc"):
        sk.diarize(path, onnx_bundle, cluster="ahc", neighbours=3)


def test_importing_stays_light() -> None:
    code = "import sys, speakerkit; print(*(m for m in ('numpy', 'onnxruntime', 'scipy') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    found = Diarization("talk", (Turn(0, 2, "A", 0.9), Turn(1, 3, "$B_1", 0.2), Turn(4, 5, "A")), 6.0)
    figure = found.plot(tmp_path / "a.svg")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "$B_1"]
    boxes = [path.get_extents() for bars in axes.collections for path in bars.get_paths()]
    assert [(box.x0, box.x1) for box in boxes] == [(0, 2), (4, 5), (1, 3)]
    assert axes.get_xlim() == (0.0, 6.0)
    found.plot(tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    Diarization("nobody").plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"neither \.png nor \.svg"):
        found.plot(tmp_path / "a.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="train"):
        found.plot()

"""Corpora in their official layouts, small and invented, to data directories."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speakerkit.data.lists import read_data_dir, read_lines, read_table
from speakerkit.data.prepare import CORPORA, prepare_corpus
from speakerkit.errors import ConfigError, DataError, PartialFailure

RATE = 16000
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make("a/b.wav", 0.5)``: audio of so many seconds below ``corpus``; returns ``corpus``."""
    root = tmp_path / "corpus"

    def write(name: str, seconds: float = 0.1) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(round(seconds * RATE), 0.1, dtype=np.float32), RATE)
        return root

    return write


def test_folder_per_speaker_writes_all_lists(make: Make, tmp_path: Path) -> None:
    make("ana/one.wav", 0.5)
    make("ana/deep/er/two.flac", 0.25)
    root = make("bo/x.wav")
    prepared = prepare_corpus("folder", root, tmp_path / "out", trials="all-pairs")
    assert (prepared.utterances, prepared.speakers, prepared.trials) == (3, 2, {"trials": 3})
    assert prepared.seconds == pytest.approx(0.85)
    assert read_table(tmp_path / "out/utt2spk") == {
        "ana/deep/er/two.flac": "ana",
        "ana/one.wav": "ana",
        "bo/x.wav": "bo",
    }
    assert read_table(tmp_path / "out/utt2dur")["ana/one.wav"] == "0.5000"
    assert read_table(tmp_path / "out/spk2utt")["ana"] == "ana/deep/er/two.flac ana/one.wav"
    assert read_lines(tmp_path / "out/trials") == [
        "ana/deep/er/two.flac ana/one.wav target",
        "ana/deep/er/two.flac bo/x.wav nontarget",
        "ana/one.wav bo/x.wav nontarget",
    ]
    assert all(Path(utterance.wav).is_absolute() for utterance in read_data_dir(tmp_path / "out"))


def test_paths_are_absolute_for_a_relative_root(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("ana/one.wav")
    monkeypatch.chdir(tmp_path)
    prepare_corpus("folder", "corpus", "out")
    assert Path(read_table("out/wav.scp")["ana/one.wav"]) == tmp_path / "corpus/ana/one.wav"


def test_blanks_become_underscores_and_paths_keep_them(make: Make, tmp_path: Path) -> None:
    root = make("Ana  María/take one.wav")
    prepare_corpus("folder", root, tmp_path / "out")
    (utterance,) = read_data_dir(tmp_path / "out")
    assert (utterance.key, utterance.speaker) == ("Ana_María/take_one.wav", "Ana_María")
    assert Path(utterance.wav) == root / "Ana  María/take one.wav"


def test_speakers_that_blanks_would_merge_are_refused(make: Make, tmp_path: Path) -> None:
    make("a b/x.wav")
    with pytest.raises(DataError, match="a_b"):
        prepare_corpus("folder", make("a_b/x.wav"), tmp_path / "out")


def test_loose_files_are_left_out_with_a_note(make: Make, tmp_path: Path) -> None:
    make("loose.wav")
    prepared = prepare_corpus("folder", make("ana/x.wav"), tmp_path / "out")
    assert prepared.utterances == 1
    assert "1 audio files" in prepared.notes[0]


def test_hidden_files_are_no_audio_and_links_are_followed_once(make: Make, tmp_path: Path) -> None:
    make("ana/._x.wav")
    root = make("ana/x.wav")
    (root / "ana" / "loop").symlink_to(root, target_is_directory=True)
    assert prepare_corpus("folder", root, tmp_path / "out").utterances == 1


def test_bad_files_are_left_out_and_named(make: Make, tmp_path: Path) -> None:
    make("ana/good.wav")
    root = make("ana/none.wav", 0)
    (root / "ana/text.wav").write_text("not audio")
    (root / "ana/void.wav").touch()
    prepared = prepare_corpus("folder", root, tmp_path / "out")
    assert prepared.utterances == 1
    rows = dict(line.split("\t")[::2] for line in read_lines(tmp_path / "out/failed.tsv"))
    assert rows.keys() == {"ana/none.wav", "ana/text.wav", "ana/void.wav"}
    assert "empty" in rows["ana/void.wav"]
    for name in ("none", "text", "void"):
        (root / f"ana/{name}.wav").unlink()
    assert prepare_corpus("folder", root, tmp_path / "out").failed == ()
    assert not (tmp_path / "out/failed.tsv").exists()


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be made there")
def test_names_that_would_break_a_list_are_left_out(make: Make, tmp_path: Path) -> None:
    make("ana/good.wav")
    root = make("ana/line\nbreak.wav")
    os.rename(root / "ana/good.wav", os.fsencode(root) + b"/ana/latin-\xe9.wav")
    make("ana/good.wav")
    prepared = prepare_corpus("folder", root, tmp_path / "out")
    assert prepared.utterances == 1
    assert len(read_lines(tmp_path / "out/failed.tsv")) == 2


@pytest.mark.parametrize("corpus", sorted(CORPORA))
def test_missing_and_empty_roots_are_one_line(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        prepare_corpus(corpus, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds nothing like") as caught:
        prepare_corpus(corpus, tmp_path / "empty", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unknown_corpus_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="librispeech"):
        prepare_corpus("librispeach", tmp_path, tmp_path / "out")


def test_librispeech_with_and_without_subsets(make: Make, tmp_path: Path) -> None:
    make("LibriSpeech/train/19/198/19-198-0000.flac")
    make("LibriSpeech/train/19/198/19-198-0001.flac")
    make("LibriSpeech/test/7/8/7-8-0000.flac")
    root = make("LibriSpeech/test/7/8/other.flac")
    assert prepare_corpus("librispeech", root, tmp_path / "all").utterances == 3
    prepared = prepare_corpus("librispeech", root, tmp_path / "train", subset="train")
    assert (prepared.utterances, prepared.speakers) == (2, 1)
    assert read_table(tmp_path / "train/utt2spk") == {"19-198-0000": "19", "19-198-0001": "19"}
    inside = prepare_corpus("librispeech", root / "LibriSpeech/test", tmp_path / "test", subset="test")
    assert inside.utterances == 1
    with pytest.raises(DataError, match="dev-clean"):
        prepare_corpus("librispeech", root, tmp_path / "none", subset="dev-clean")


def test_voxceleb1_converts_the_cleaned_lists(make: Make, tmp_path: Path) -> None:
    make("dev/wav/id10001/1zcIwhmdeo4/00001.wav")
    make("test/wav/id10270/-5r0dWxy17C8/00002.wav")
    make("wav/id00012/video/00001.wav")
    root = make("test/wav/id10309/0cYFdtyWVds/00005.wav")
    one, two = "id10270/-5r0dWxy17C8/00002.wav", "id10309/0cYFdtyWVds/00005.wav"
    (root / "veri_test2.txt").write_text(f"1 {one} {one}\n0 {one} {two}\n")
    (root / "meta").mkdir()
    (root / "meta/list_test_all2.txt").write_text(f"0 id10001/1zcIwhmdeo4/00001.wav {two}\n")
    (root / "list_test_hard2.txt").write_text(f"1 {one} id10999/gone/00001.wav\n")
    prepared = prepare_corpus("voxceleb1", root, tmp_path / "all")
    assert prepared.trials == {"trials": 2, "trials_E": 1}
    assert read_lines(tmp_path / "all/trials") == [f"{one} {one} target", f"{one} {two} nontarget"]
    assert "list_test_hard2.txt" in prepared.notes[0]
    assert read_table(tmp_path / "all/utt2spk")["id10001/1zcIwhmdeo4/00001.wav"] == "id10001"
    test = prepare_corpus("voxceleb1", root, tmp_path / "test", subset="test")
    assert (test.utterances, test.trials) == (2, {"trials": 2})
    assert prepare_corpus("voxceleb1", root, tmp_path / "dev", subset="dev").utterances == 1
    with pytest.raises(DataError, match="train"):
        prepare_corpus("voxceleb1", root, tmp_path / "bad", subset="train")


def test_voxceleb2_takes_dev_and_m4a(make: Make, tmp_path: Path) -> None:
    make("dev/aac/id00012/21Uxsk56VDQ/00001.wav")
    root = make("test/aac/id00017/01dfn2spqyE/00001.wav")
    wav = root / "dev/aac/id00012/21Uxsk56VDQ/00001.wav"
    m4a = wav.with_name("00002.m4a")
    _encode_m4a(m4a)
    wav.with_suffix(".m4a").write_bytes(m4a.read_bytes())
    prepared = prepare_corpus("voxceleb2", root, tmp_path / "dev")
    assert prepared.utterances == 2
    wavs = read_table(tmp_path / "dev/wav.scp")
    assert wavs["id00012/21Uxsk56VDQ/00001.wav"] == str(wav)  # converted already: the original is not needed
    assert wavs["id00012/21Uxsk56VDQ/00002.wav"] == str(m4a)
    assert float(read_table(tmp_path / "dev/utt2dur")["id00012/21Uxsk56VDQ/00002.wav"]) == pytest.approx(0.5, abs=0.1)
    assert list(prepare_corpus("voxceleb2", root / "test", tmp_path / "test", subset="test").trials) == []
    assert read_table(tmp_path / "test/utt2spk") == {"id00017/01dfn2spqyE/00001.wav": "id00017"}


def _encode_m4a(path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        samples = (0.1 * np.sin(np.arange(RATE // 2) * 0.1)).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])


def test_a_trial_list_is_converted_from_either_format(make: Make, tmp_path: Path) -> None:
    make("ana/x.wav")
    root = make("bo/x.wav")
    for text in ("0 ana/x.wav bo/x.wav\n", "ana/x.wav bo/x.wav nontarget\n", "ana/x.wav bo/x.wav 0\n"):
        (tmp_path / "list").write_text(text)
        prepare_corpus("folder", root, tmp_path / "out", trials=str(tmp_path / "list"))
        assert read_lines(tmp_path / "out/trials") == ["ana/x.wav bo/x.wav nontarget"]
    for text, fault in (("ana/x.wav bo/x.wav\n", "line 1"), ("1 ana/x.wav gone.wav\n", "gone.wav"), ("", "no trials")):
        (tmp_path / "list").write_text(text)
        with pytest.raises(DataError, match=fault):
            prepare_corpus("folder", root, tmp_path / "out", trials=str(tmp_path / "list"))


def test_musan_types_come_from_the_folders(make: Make, tmp_path: Path) -> None:
    make("musan/noise/free-sound/n.wav")
    make("musan/music/fma/m.wav")
    root = make("musan/speech/us-gov/s.wav")
    prepare_corpus("musan", root, tmp_path / "out")
    assert read_table(tmp_path / "out/utt2type") == {
        "noise/free-sound/n.wav": "noise",
        "music/fma/m.wav": "music",
        "speech/us-gov/s.wav": "speech",
    }
    prepare_corpus("musan", root / "musan/music", tmp_path / "music", subset="music")
    assert read_table(tmp_path / "music/utt2type") == {"music/fma/m.wav": "music"}
    with pytest.raises(DataError, match="no trials"):
        prepare_corpus("musan", root, tmp_path / "out", trials="all-pairs")


def test_flat_folders_of_noises_and_responses(make: Make, tmp_path: Path) -> None:
    root = make("some noise.wav")
    prepare_corpus("noise", root, tmp_path / "noise")
    assert read_table(tmp_path / "noise/utt2type") == {"noise/some_noise.wav": "noise"}
    prepare_corpus("rirs", root, tmp_path / "rir")
    assert read_table(tmp_path / "rir/utt2type") == {"rir/some_noise.wav": "rir"}
    assert read_table(tmp_path / "rir/wav.scp") == {"rir/some_noise.wav": str(root / "some noise.wav")}


def test_rirs_noises_subsets(make: Make, tmp_path: Path) -> None:
    make("RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-00001.wav")
    make("RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_near_angla.wav")
    make("RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav")
    root = make("RIRS_NOISES/pointsource_noises/noise-free-sound-0000.wav")
    expected = {
        None: {"smallroom/Room001/Room001-00001.wav": "rir", "real/RVB2014_type1_rir_largeroom1_near_angla.wav": "rir"},
        "simulated": {"smallroom/Room001/Room001-00001.wav": "rir"},
        "pointsource": {"noise/noise-free-sound-0000.wav": "noise"},
        "isotropic": {"noise/RVB2014_type1_noise_largeroom1_1.wav": "noise"},
    }
    for subset, types in expected.items():
        prepare_corpus("rirs", root, tmp_path / "out", subset=subset)
        assert read_table(tmp_path / "out/utt2type") == types
        assert all(Path(path).is_file() for path in read_table(tmp_path / "out/wav.scp").values())
    prepare_corpus("rirs", root / "RIRS_NOISES/simulated_rirs", tmp_path / "inside", subset="simulated")
    assert read_table(tmp_path / "inside/utt2type") == expected["simulated"]


def test_command_prints_totals_and_fails_in_part(make: Make, tmp_path: Path) -> None:
    from speakerkit.cli.data import app

    root = make("ana/x.wav")
    arguments = ["prepare", "folder", str(root), str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "1 recordings, 1 speakers" in result.stdout
    (root / "ana/y.wav").touch()
    failed = CliRunner().invoke(app, arguments)
    assert isinstance(failed.exception, PartialFailure)
    assert "failed.tsv" in str(failed.exception)


@pytest.mark.real_audio
def test_real_librispeech_layout(real_data: Path, tmp_path: Path) -> None:
    prepared = prepare_corpus(
        "librispeech", real_data / "librispeech-mini", tmp_path / "test", subset="test-other", trials="all-pairs"
    )
    assert (prepared.utterances, prepared.speakers, prepared.trials) == (50, 5, {"trials": 1225})
    genders = dict(line.split() for line in read_lines(tmp_path / "test" / "spk2gender"))
    assert genders == {"367": "f", "1688": "m", "1998": "f", "2033": "m", "3005": "m"}
    assert prepare_corpus("noise", real_data / "noise", tmp_path / "noise").utterances == 85
    assert prepare_corpus("rirs", real_data / "rir", tmp_path / "rir").utterances == 4

"""CALLHOME out of an invented LDC tree: lists of all and of both parts, and what is said where something is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speakerkit.audio import load_audio
from speakerkit.cli.main import app
from speakerkit.data.lists import read_lines, read_table
from speakerkit.data.prepare import prepare_corpus
from speakerkit.diarization.formats import read_turns
from speakerkit.errors import AudioError, DataError, PartialFailure

DATA = Path("LDC2001S97", "r65_8_1", "sid00sg1", "data")
NAMES = ("iaaa", "iaab", "iaac")
SHORTENED = (
    b"NIST_1A\n   1024\nsample_count -i 8000\nchannel_count -i 1\nsample_rate -i 8000\nsample_n_bytes -i 1\n"
    b"sample_coding -s27 ulaw,embedded-shorten-v2.00\nend_head\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three recordings of two speakers, mu-law in SPHERE, the reference and the lists of the parts."""
    root = tmp_path / "corpora"
    (root / DATA).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        samples = 0.3 * np.sin(np.arange(8000 * (number + 1)) * 0.2)
        soundfile.write(root / DATA / f"{name}.sph", samples, 8000, subtype="ULAW", format="NIST")
    (root / "sre2000-key").mkdir()
    lines = [
        f"SPEAKER {name} 1 {start} 0.50 <NA> <NA> {speaker} <NA> <NA>\n"
        for name in NAMES
        for start, speaker in ((0.1, "A"), (0.4, "B"))
    ]
    (root / "sre2000-key" / "fullref.rttm").write_text("".join(lines))
    (root / "part1.txt").write_text("iaaa\niaac\n")
    (root / "part2.txt").write_text("iaab\n")
    return root


def test_all_and_both_parts(root: Path, tmp_path: Path) -> None:
    prepared = prepare_corpus("callhome", root, tmp_path / "out")
    assert (prepared.utterances, prepared.speakers, prepared.notes) == (3, 6, ())
    assert prepared.seconds == pytest.approx(6.0)
    assert read_table(tmp_path / "out/reco2num_spk") == dict.fromkeys(NAMES, "2")
    assert read_table(tmp_path / "out/utt2spk") == {name: name for name in NAMES}
    for part, names in (("part1", ("iaaa", "iaac")), ("part2", ("iaab",)), ("", NAMES)):
        folder = tmp_path / "out" / part
        assert tuple(read_table(folder / "wav.scp")) == names
        assert tuple(read_table(folder / "utt2dur")) == names
        turns = read_turns(folder / "rttm", "rttm")
        assert tuple(turns) == names
        assert [(turn.start, turn.end, turn.speaker) for turn in turns[names[0]].turns] == [
            (0.1, 0.6, "A"),
            (0.4, 0.9, "B"),
        ]
    sound = load_audio(read_table(tmp_path / "out/wav.scp")["iaab"])
    expected = 0.3 * np.sin(np.arange(16000) * 0.2)
    assert sound.rate == 8000
    assert np.abs(sound.samples - expected).max() < 0.3 / 32  # a step of mu-law is up to 1/32 of the value


def test_what_is_converted_is_taken_instead(root: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (root / DATA / f"{name}.sph").write_bytes(SHORTENED.ljust(1024, b" ") + b"ajkg" + bytes(1000))
        soundfile.write(root / f"{name}.wav", np.full(8000, 0.1), 8000)
    prepare_corpus("callhome", root, tmp_path / "out")
    assert read_table(tmp_path / "out/wav.scp") == {name: str(root / f"{name}.wav") for name in NAMES}


def test_shorten_is_named_with_its_remedy(root: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (root / DATA / f"{name}.sph").write_bytes(SHORTENED.ljust(1024, b" ") + b"ajkg" + bytes(1000))
    with pytest.raises(DataError, match=r"none of 3 files.*shorten.*sph2pipe"):
        prepare_corpus("callhome", root, tmp_path / "out")
    packed = root / DATA / "iaaa.sph"
    for source in (packed, packed.read_bytes()):
        with pytest.raises(AudioError, match=r"shorten.*sph2pipe"):
            load_audio(source)


def test_one_bad_recording_is_a_part_that_fails(root: Path, tmp_path: Path) -> None:
    (root / DATA / "iaac.sph").write_bytes(b"no audio")
    prepared = prepare_corpus("callhome", root, tmp_path / "out")
    assert [key for key, _, _ in prepared.failed] == ["iaac"]
    assert tuple(read_turns(tmp_path / "out/part1/rttm", "rttm")) == ("iaaa",)
    result = CliRunner().invoke(app, ["data", "prepare", "callhome", str(root), str(tmp_path / "out")])
    assert isinstance(result.exception, PartialFailure)


def test_a_recording_of_neither_part_is_noted(root: Path, tmp_path: Path) -> None:
    (root / "part1.txt").write_text("iaaa\n")
    prepared = prepare_corpus("callhome", root, tmp_path / "out")
    assert prepared.notes == ("1 recordings are in neither part",)
    assert len(read_lines(tmp_path / "out/wav.scp")) == 3


def test_kaldis_directories_are_lists_too(root: Path, tmp_path: Path) -> None:
    for number, part in enumerate(("callhome1", "callhome2"), start=1):
        (root / part).mkdir()
        listed = (root / f"part{number}.txt").read_text().split()
        (root / part / "wav.scp").write_text("".join(f"{name} sph2pipe -f wav -p x.sph |\n" for name in listed))
        (root / f"part{number}.txt").unlink()
    prepare_corpus("callhome", root, tmp_path / "out")
    assert tuple(read_table(tmp_path / "out/part1/wav.scp")) == ("iaaa", "iaac")


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_remove("sre2000-key/fullref.rttm"), r"has no fullref\.rttm.*OpenSLR 10"),
        (_write("fullref.rttm", ""), "leave one of them"),
        (_write("sre2000-key/fullref.rttm", ""), "is empty"),
        (_write("sre2000-key/fullref.rttm", "iaaa 1 2\n"), "line 1 is no turn"),
        (_write("sre2000-key/fullref.rttm", "SPEAKER iaaa 1 nan 1 <NA> <NA> A\n"), "line 1 is no turn"),
        (_remove("part2.txt"), r"part2\.txt.*callhome2"),
        (_write("part2.txt", ""), "is empty"),
        (_write("part2.txt", "iaaa\n"), "'iaaa' in both parts"),
        (_write("part2.txt", "nobody\n"), "names 'nobody'"),
        (_remove(str(DATA / "iaab.sph")), "lacks 1 of the 3 recordings.*iaab first"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_missing_is_said_in_one_line(
    spoil: Callable[[Path], object], said: str, root: Path, tmp_path: Path
) -> None:
    spoil(root)
    with pytest.raises(DataError, match=said) as caught:
        prepare_corpus("callhome", root, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["subset", "trials"])
def test_it_has_neither_subsets_nor_trials(option: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"--{option}"):
        prepare_corpus("callhome", root, tmp_path / "out", **{option: "all-pairs"})

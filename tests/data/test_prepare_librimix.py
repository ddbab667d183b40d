"""Published layouts of mixtures and their lists of enrolments, as directories that extraction reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.data.lists import read_table
from speakerkit.data.mixing.lists import ListedMixture, Target, read_mixture_dir, write_mixture_dir
from speakerkit.data.prepare import prepare_corpus
from speakerkit.data.prepare.librimix import _enrolment_row, _info_genders, _used_rows
from speakerkit.data.sources import speech_spans
from speakerkit.errors import DataError
from tests.command import speakerkit
from tests.conftest import speech_like

RATE = 8000
MIXTURES = ["61-70968-0000_908-31957-0025", "908-31957-0003_61-70968-0007", "61-70970-0001_908-157963-0008"]


def write(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="PCM_16")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two talkers in three mixtures of Libri2Mix's layout, the second's first second silent; LibriSpeech beside it."""
    root = tmp_path / "corpora"
    split = root / "Libri2Mix" / "wav8k" / "min" / "test"
    for number, key in enumerate(MIXTURES):
        first, second = (0.3 * speech_like(2.0, RATE, 2 * number + each) for each in range(2))
        second[:RATE] = 0
        write(split / "s1" / f"{key}.wav", first)
        write(split / "s2" / f"{key}.wav", second)
        write(split / "mix_clean" / f"{key}.wav", first + second)
        write(split / "mix_single" / f"{key}.wav", first)
    for utterance in ("61-70970-0040", "908-31957-0009"):
        speaker, chapter, _ = utterance.split("-")
        write(root / "LibriSpeech" / "test-clean" / speaker / chapter / f"{utterance}.flac", speech_like(1.0, RATE))
    return root


def enrolments(out: Path) -> dict[str, str]:
    return {key: Path(path).stem for key, path in read_table(out / "enroll.scp").items()}


def test_a_split_without_list(root: Path, tmp_path: Path) -> None:
    made = prepare_corpus("librimix", root, tmp_path / "out", subset="Libri2Mix/wav8k/min/test/mix_clean")
    assert (made.utterances, made.speakers, made.seconds) == (3, 2, pytest.approx(6.0))
    listed = read_mixture_dir(tmp_path / "out")
    assert [each.key for each in listed] == sorted(MIXTURES)
    for mixture in listed:
        assert mixture.utterances == tuple(mixture.key.split("_"))
        for target in mixture.targets:
            place = [part.split("-")[0] for part in mixture.utterances].index(target.speaker)
            assert Path(target.reference).parent.name == f"s{place + 1}"
            # A source of another mixture, of the same speaker and another utterance.
            source = Path(target.enrolment)
            enrolled = source.stem.split("_")[int(source.parent.name[1]) - 1]
            assert enrolled.split("-")[0] == target.speaker
            assert enrolled not in mixture.utterances
            samples, rate = soundfile.read(target.reference, dtype="float32")
            told = [(start, end) for start, end, speaker in mixture.turns if speaker == target.speaker]
            np.testing.assert_allclose(told, speech_spans(samples, rate), atol=1e-3)
            assert place == 0 or min(told)[0] > 0.9
    again = tmp_path / "again"
    ran = speakerkit("data", "prepare", "librimix", root / "Libri2Mix/wav8k/min/test", again)
    assert ran.code == 0
    assert (again / "enroll.scp").read_bytes() == (tmp_path / "out" / "enroll.scp").read_bytes()


def test_mix_single_has_one_target(root: Path, tmp_path: Path) -> None:
    prepare_corpus("librimix", root, tmp_path / "out", subset="Libri2Mix/wav8k/min/test/mix_single")
    for mixture in read_mixture_dir(tmp_path / "out"):
        (target,) = mixture.targets
        assert Path(target.reference).parent.name == "s1"
        assert {speaker for _, _, speaker in mixture.turns} == {target.speaker}


@pytest.mark.parametrize(
    ("line", "speaker", "enrolment"),
    [
        # speakerbeam's text, its csv, wesep's, SpEx+'s and L-SpEx's (with the mixture's speakers before it).
        (f"{MIXTURES[0]} 61-70968-0000 s2/{MIXTURES[1]}", "61", MIXTURES[1]),
        (f"{MIXTURES[0]},908-31957-0025,s1/{MIXTURES[1]}.wav,16000", "908", MIXTURES[1]),
        (f"{MIXTURES[0]} s2/{MIXTURES[2]}.wav", "908", MIXTURES[2]),
        (f"{MIXTURES[0]}_61-70970-0040 /elsewhere/61-70970-0040.flac", "61", "61-70970-0040"),
        (f"61_908-{MIXTURES[0]}_908-31957-0009 some/908-31957-0009.flac", "908", "908-31957-0009"),
    ],
)
def test_lists_of_enrolments(root: Path, tmp_path: Path, line: str, speaker: str, enrolment: str) -> None:
    (tmp_path / "list").write_text(f"{line}\n")
    prepare_corpus(
        "librimix",
        root,
        tmp_path / "out",
        subset="Libri2Mix/wav8k/min/test/mix_clean",
        trials=str(tmp_path / "list"),
    )
    assert enrolments(tmp_path / "out") == {f"{MIXTURES[0]}-{speaker}": enrolment}
    assert len(read_mixture_dir(tmp_path / "out")) == 3  # the others stand there without targets


def test_the_form_of_lspex_as_published() -> None:
    line = "103_7067-103-1240-0034_7067-76047-0021_103-1241-0022 /data/103-1241-0022.flac"
    assert _enrolment_row(line) == ("103-1240-0034_7067-76047-0021", "103", "/data/103-1241-0022.flac")


def test_used_splits(root: Path, tmp_path: Path) -> None:
    prefix = "Libri2Mix/wav16k/max/test"
    key = MIXTURES[0]
    rows = [
        (key, f"{prefix}/mix_both/{key}.wav", f"{prefix}/s1/{key}.wav", "61/70970/61-70970-0040.flac", "61"),
        (key, f"{prefix}/mix_both/{key}.wav", f"{prefix}/s2/{key}.wav", "908/31957/908-31957-0009.flac", "908"),
    ]
    lines = ("\t".join((*row[:3], f"LibriSpeech/test-clean/{row[3]}", row[4])) for row in rows)
    (tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
    ran = speakerkit(
        *("data", "prepare", "librimix", root, tmp_path / "out", "--trials", tmp_path / "test.tsv"),
        *("--subset", "wav8k/min/mix_clean"),
    )
    assert ran.code == 0, ran.errors
    (mixture,) = read_mixture_dir(tmp_path / "out")
    assert mixture.wav.endswith(f"wav8k/min/test/mix_clean/{key}.wav")
    assert enrolments(tmp_path / "out") == {f"{key}-61": "61-70970-0040", f"{key}-908": "908-31957-0009"}
    assert {speaker for _, _, speaker in mixture.turns} == {"61", "908"}
    ran = speakerkit("data", "prepare", "librimix", root, tmp_path / "no", "--trials", tmp_path / "test.tsv")
    assert ran.code == 2
    assert "lacks 3 files of the list" in ran.errors[0]


def used_list(path: Path, *rows: tuple[str, int, str]) -> Path:
    """A list of USED's, of rows (mixture, number of the target, enrolment of test-clean)."""
    lines = []
    for key, number, utterance in rows:
        speaker, chapter, _ = utterance.split("-")
        folder = f"Libri{key.count('_') + 1}Mix/wav16k/max/test"
        enrolment = f"LibriSpeech/test-clean/{speaker}/{chapter}/{utterance}.flac"
        paths = f"{folder}/mix_both/{key}.wav", f"{folder}/s{number}/{key}.wav", enrolment
        lines.append("\t".join((key, *paths, speaker)))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_used_lists_of_both_numbers_of_speakers(root: Path, tmp_path: Path) -> None:
    """With Libri2Mix in --subset, those of three are left out, whose files need not be there."""
    three = f"{MIXTURES[0]}_19-227-0045"
    rows = [(MIXTURES[0], 1, "61-70970-0040"), (MIXTURES[0], 2, "908-31957-0009"), (three, 1, "61-70970-0040")]
    listed = used_list(tmp_path / "test.tsv", *rows)

    def prepare(subset: str) -> list[ListedMixture]:
        prepare_corpus("librimix", root, tmp_path / "out", subset=subset, trials=str(listed))
        return read_mixture_dir(tmp_path / "out")

    assert [each.key for each in prepare("Libri2Mix/wav8k/min/mix_clean")] == [MIXTURES[0]]
    with pytest.raises(DataError, match="lacks 2 files of the list"):
        prepare("wav8k/min/mix_clean")
    with pytest.raises(DataError, match=r"test\.tsv.*has no targets in Libri4Mix"):
        prepare("Libri4Mix/wav8k/min/mix_clean")


def test_used_mixtures_of_one_voice(root: Path, tmp_path: Path) -> None:
    """In mix_single nobody but the first is a target or speaks."""
    rows = [(MIXTURES[0], 1, "61-70970-0040"), (MIXTURES[0], 2, "908-31957-0009")]
    listed = used_list(tmp_path / "test.tsv", *rows)
    prepare_corpus("librimix", root, tmp_path / "out", subset="wav8k/min/mix_single", trials=str(listed))
    (mixture,) = read_mixture_dir(tmp_path / "out")
    assert enrolments(tmp_path / "out") == {f"{MIXTURES[0]}-61": "61-70970-0040"}
    assert {speaker for _, _, speaker in mixture.turns} == {"61"}


def test_genders_of_librispeech_or_of_the_metadata(root: Path, tmp_path: Path) -> None:
    def genders(*trials: Path) -> dict[str, str]:
        subset = "Libri2Mix/wav8k/min/mix_clean" if trials else "Libri2Mix/wav8k/min/test/mix_clean"
        given = str(trials[0]) if trials else None
        prepare_corpus("librimix", root, tmp_path / "out", subset=subset, trials=given)
        return read_table(tmp_path / "out" / "spk2gender")

    prepare_corpus("librimix", root, tmp_path / "none", subset="Libri2Mix/wav8k/min/test")
    assert not (tmp_path / "none" / "spk2gender").exists()
    table = root / "metadata" / "Libri2Mix" / "libri2mix_test-clean_info.csv"
    table.parent.mkdir(parents=True)
    columns = "mixture_ID,speaker_1_ID,speaker_1_sex,speaker_2_ID,speaker_2_sex"
    table.write_text(f"{columns}\n{MIXTURES[0]},61.0,M,908.0,F\n")
    assert genders() == {"61": "m", "908": "f"}
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text(
        ";x\n61 | F | test-clean | 8 | A\n908 | M | test-clean | 8 | B\n"
    )
    assert genders() == {"61": "f", "908": "m"}
    # Also of who speaks and is no target.
    assert genders(used_list(tmp_path / "test.tsv", (MIXTURES[0], 1, "61-70970-0040"))) == {"61": "f", "908": "m"}
    again = tmp_path / "again"
    ran = speakerkit("data", "prepare", "librimix", root / "Libri2Mix" / "wav8k" / "min" / "test", again)
    assert (ran.code, read_table(again / "spk2gender")) == (0, {"61": "f", "908": "m"})


def test_genuine_genders(real_data: Path) -> None:
    table = real_data / "librimix-metadata" / "Libri3Mix_libri3mix_dev-clean_info.csv"
    found = dict(_info_genders(table))
    assert (found["6313"], found["6295"], found["2277"]) == ("F", "M", "F")
    assert all(speaker.isdigit() for speaker in found)


def test_genuine_used_rows(real_data: Path) -> None:
    for name in ("used_dev.tsv", "used_test.tsv"):
        path = real_data / "librimix-metadata" / name
        rows = _used_rows(path)
        assert ["\t".join(row) for row in rows] == path.read_text().splitlines()
        for key, mixture, target, enrolment, speaker in rows:
            parts = key.split("_")
            place = int(Path(target).parent.name[1]) - 1
            assert Path(mixture).stem == key
            assert parts[place].split("-")[0] == speaker == Path(enrolment).stem.split("-")[0]
            assert Path(enrolment).stem not in parts  # never an utterance of the mixture
    lines = (real_data / "librimix-metadata" / "used_SparseLibriMix_test.tsv").read_text().splitlines()
    assert _used_rows(real_data / "librimix-metadata" / "used_SparseLibriMix_test.tsv") == []
    for line in lines:
        key, _, enrolment, speaker = line.split("\t")
        assert _enrolment_row(line) == (key, speaker, enrolment)


def test_sparse_mixtures_take_turns_and_names_from_their_metadata(root: Path, tmp_path: Path) -> None:
    def segment(utterance: str, start: float, stop: float) -> dict[str, object]:
        speaker, chapter, _ = utterance.split("-")
        own = {"file": f"{speaker}/{chapter}/{utterance}.flac", "spk_id": speaker, "utt_id": utterance, "lvl": -30}
        return {**own, "start": start, "stop": stop, "orig_start": 0.1, "orig_stop": 0.1 + stop - start}

    folder = tmp_path / "sparse" / "sparse_2_0" / "wav8000"
    entries = []
    for number, (first, second) in enumerate((key.split("_") for key in MIXTURES), start=1):
        name = f"mix_{number:07d}"
        entries.append({"mixture_name": name, "s2": [segment(second, 1.5, 2.0)], "s1": [segment(first, 0.2, 1.0)]})
        for kind in ("s1", "s2", "mix_clean"):
            write(folder / kind / f"{name}.wav", 0.3 * speech_like(2.0, RATE, number))
    with pytest.raises(DataError, match="put the metadata"):
        prepare_corpus("librimix", folder, tmp_path / "out")
    metadata = tmp_path / "sparse" / "metadata" / "sparse_2_0" / "metadata.json"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(json.dumps(entries))
    (tmp_path / "list.tsv").write_text(
        f"{MIXTURES[0]}\tx/{MIXTURES[0]}.wav\tLibriSpeech/test-clean/61/70970/61-70970-0040.flac\t61\n"
    )
    prepare_corpus("librimix", folder, tmp_path / "out")
    assert read_table(tmp_path / "out" / "reco2alias")["mix_0000001"] == MIXTURES[0]
    first = read_mixture_dir(tmp_path / "out")[0]
    assert first.turns == ((0.2, 1.0, "61"), (1.5, 2.0, "908"))
    # The root is above both the mixtures and LibriSpeech; the list goes by USED's names.
    (root / "SparseLibriMix").symlink_to(tmp_path / "sparse")
    prepare_corpus(
        "librimix",
        root,
        tmp_path / "two",
        subset="SparseLibriMix/sparse_2_0/wav8000",
        trials=str(tmp_path / "list.tsv"),
    )
    assert enrolments(tmp_path / "two") == {"mix_0000001-61": "61-70970-0040"}


def test_what_is_missing_is_counted(root: Path, tmp_path: Path) -> None:
    split = root / "Libri2Mix" / "wav8k" / "min" / "test"
    with pytest.raises(DataError, match="holds nothing like"):
        prepare_corpus("librimix", root, tmp_path / "out")
    (tmp_path / "list").write_text(f"{MIXTURES[0]}_61-70970-0099 x.flac\n")
    with pytest.raises(DataError, match="names 1 files that are not there"):
        prepare_corpus("librimix", split, tmp_path / "out", trials=str(tmp_path / "list"))
    (tmp_path / "list").write_text("what is this line\nno\n")
    with pytest.raises(DataError):
        prepare_corpus("librimix", split, tmp_path / "out", trials=str(tmp_path / "list"))
    for key in MIXTURES[:2]:
        (split / "s2" / f"{key}.wav").unlink()
    with pytest.raises(DataError, match="lacks 2 sources"):
        prepare_corpus("librimix", split, tmp_path / "out")
    for key in MIXTURES[1:]:
        (split / "mix_clean" / f"{key}.wav").unlink()
    write(split / "s2" / f"{MIXTURES[0]}.wav", speech_like(2.0, RATE))
    with pytest.raises(DataError, match="no other utterance to enrol 2 targets"):
        prepare_corpus("librimix", split, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_directories_of_mixtures_contradict_nothing(tmp_path: Path) -> None:
    mixture = ListedMixture("m", "m.wav", 1.0, (Target("a", "e.wav", "r.wav"),), ((0.0, 0.5, "a"),), ("u",))
    with pytest.raises(DataError, match="comes twice"):
        write_mixture_dir(tmp_path / "x", [mixture, mixture])
    with pytest.raises(DataError, match="very recording to extract"):
        write_mixture_dir(tmp_path / "x", [ListedMixture("m", "m.wav", 1.0, (Target("a", "r.wav", "r.wav"),))])
    with pytest.raises(DataError, match="no mixtures"):
        write_mixture_dir(tmp_path / "x", [])
    with pytest.raises(DataError, match="blanks"):
        write_mixture_dir(tmp_path / "x", [ListedMixture("m n", "m.wav", 1.0, ())])
    for name in ("m.wav", "e.wav", "r.wav"):
        write(tmp_path / name, speech_like(1.0, RATE))
    target = Target("a-b", str(tmp_path / "e.wav"), str(tmp_path / "r.wav"))
    absent = Target("c", str(tmp_path / "e.wav"))
    turns = ((0.0, 0.5, "a-b"), (0.25, 1.0, "d"))
    whole = ListedMixture("m-n", str(tmp_path / "m.wav"), 1.0, (target, absent), turns, ("u", "v"))
    write_mixture_dir(tmp_path / "set", [whole])
    assert read_mixture_dir(tmp_path / "set") == [whole]
    (tmp_path / "set" / "rttm").write_text("SPEAKER m-n 1 0.0 x <NA> <NA> a <NA> <NA>\n")
    with pytest.raises(DataError, match="is no turn"):
        read_mixture_dir(tmp_path / "set")

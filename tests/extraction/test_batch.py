"""Directories of mixtures to folders of voices: what is read, what is kept, what fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.data.lists import read_scp, write_table
from speakerkit.errors import AudioError, DataError
from speakerkit.extraction.batch import Job, Wanted, extract_to_folder, read_jobs
from tests.extraction.test_pipeline import RATE, BandModel, extractor, speech_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Mixtures m0 of voices 0 and 1, m1 of 1 and 2, and one that is no sound; in m1, voice 0 is wanted too."""
    place = tmp_path / "mixtures"
    place.mkdir()
    for number in range(3):
        soundfile.write(place / f"enrol {number}.wav", speech_of(number, 4.0, seed=9), RATE, subtype="FLOAT")
    for number in range(2):
        mixture = speech_of(number, 2.0) + speech_of(number + 1, 2.0)
        soundfile.write(place / f"m{number}.wav", mixture, RATE, subtype="FLOAT")
    (place / "bad.wav").write_bytes(b"no sound")
    wanted = {"m0-s0": 0, "m0-s1": 1, "m1-s1": 1, "m1-s0": 0, "bad-s1": 1}
    write_table(place / "wav.scp", {key: str(place / f"{key}.wav") for key in ("m0", "m1", "bad")})
    write_table(place / "enroll.scp", {key: str(place / f"enrol {number}.wav") for key, number in wanted.items()})
    write_table(place / "utt2spk", {key: key.partition("-")[2] for key in wanted})
    return place


def test_a_directory(folder: Path, tmp_path: Path) -> None:
    model, out = BandModel(), tmp_path / "out"
    done = extract_to_folder(extractor(model), read_jobs(folder), out)
    assert (done.written, done.kept, sorted(done.failures)) == (4, 0, ["bad-s1"])
    assert len(model.mixtures) == 2  # once for all voices of a mixture
    assert model.enrolled == 2 + 2 * 4 + 2  # each enrolment, output and rest once; parts of two enrolments
    assert sorted(file.name for file in out.iterdir()) == [
        *("failed.tsv", "m0-s0.wav", "m0-s1.wav", "m1-s0.wav", "m1-s1.wav", "results.jsonl", "wav.scp")
    ]
    assert (out / "failed.tsv").read_text().startswith("bad-s1\t")
    assert read_scp(out / "wav.scp") == {key: str(out / f"{key}.wav") for key in ("m0-s0", "m0-s1", "m1-s0", "m1-s1")}
    rows = {row["key"]: row for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert rows == done.rows
    assert {key: row["target_present"] for key, row in rows.items()} == {
        **{"m0-s0": True, "m0-s1": True, "m1-s0": False, "m1-s1": True}
    }
    assert soundfile.info(out / "m0-s0.wav").frames == 2 * RATE


def test_it_is_taken_up_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract_to_folder(extractor(BandModel()), read_jobs(folder), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "m0-s1.wav").unlink()
    rows = (out / "results.jsonl").read_text()
    (out / "results.jsonl").write_text(rows[:-20])  # as a killed run leaves it: the last row is m1-s1's
    soundfile.write(folder / "bad.wav", speech_of(1, 1.0), RATE, subtype="FLOAT")
    done = extract_to_folder(extractor(BandModel()), read_jobs(folder), out)
    assert (done.written, done.kept, done.failures) == (3, 2, {})
    assert not (out / "failed.tsv").exists()
    assert all((out / name).read_bytes() == before[name] for name in before if name.endswith(".wav"))
    again = extract_to_folder(extractor(BandModel()), read_jobs(folder), out)
    assert (again.written, again.kept) == (0, 5)
    scp = (folder / "enroll.scp").read_text().replace("m0-s0 " + str(folder / "enrol 0.wav"), f"m0-s0 {folder}/m0.wav")
    (folder / "enroll.scp").write_text(scp)
    changed = extract_to_folder(extractor(BandModel()), read_jobs(folder), out)
    assert (changed.written, changed.kept) == (1, 4)
    anew = extract_to_folder(extractor(BandModel()), read_jobs(folder), out, resume=False)
    assert (anew.written, anew.kept) == (5, 0)


def test_all_again_forgets_voices_of_other_settings(folder: Path, tmp_path: Path) -> None:
    out, jobs = tmp_path / "out", read_jobs(folder)
    assert [len(job.targets) for job in jobs] == [1, 2, 2]
    extract_to_folder(extractor(BandModel()), jobs[:2], out)  # the first is no sound
    other = extract_to_folder(extractor(BandModel(0.5)), jobs[2:], out, resume=False)
    assert (other.written, other.kept) == (2, 0)
    assert read_scp(out / "wav.scp").keys() == {"m1-s0", "m1-s1"}
    assert not (out / "failed.tsv").exists()
    first = extract_to_folder(extractor(BandModel(0.5)), jobs[1:], out)
    assert (first.written, first.kept) == (2, 2)


def test_complete_targets_are_done_together(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BandModel, "can_complete", True)
    model, out = BandModel(), tmp_path / "out"
    ready, jobs = extractor(model), read_jobs(folder)[1:]  # without that which is no sound
    assert extract_to_folder(ready, jobs, out, complete=True).written == 4
    (out / "m0-s1.wav").unlink()
    done = extract_to_folder(ready, jobs, out, complete=True)
    assert (done.written, done.kept) == (2, 2)
    (folder / "enrol 2.wav").write_bytes(b"no sound")
    targets = {**jobs[1].targets, "m1-s2": Wanted("s2", str(folder / "enrol 2.wav"))}
    done = extract_to_folder(ready, [jobs[0], Job(jobs[1].mixture, targets)], out, complete=True)
    assert sorted(done.failures) == ["m1-s0", "m1-s1", "m1-s2"]
    assert "'m1-s2' of its targets failed" in done.failures["m1-s0"]
    assert "cannot be decoded" in done.failures["m1-s2"]
    assert sorted(done.rows) == ["m0-s0", "m0-s1"]


def test_a_bad_enrolment_is_no_reason_to_leave_the_others(folder: Path, tmp_path: Path) -> None:
    soundfile.write(folder / "enrol 0.wav", np.zeros(RATE), RATE)
    done = extract_to_folder(extractor(BandModel()), read_jobs(folder), tmp_path / "out")
    assert sorted(done.failures) == ["bad-s1", "m0-s0", "m1-s0"]
    assert "is silent" in done.failures["m0-s0"]
    assert done.written == 2
    with pytest.raises(AudioError, match="is silent"):
        extract_to_folder(extractor(BandModel()), read_jobs(folder)[1:], tmp_path / "other", alone=True)


def test_contradictions_are_refused(folder: Path) -> None:
    good = {name: (folder / name).read_text() for name in ("wav.scp", "enroll.scp", "utt2spk")}
    for name, text, fault in (
        ("utt2spk", good["utt2spk"].replace("m0-s1 s1\n", ""), "utt2spk: lacks 'm0-s1'"),
        ("enroll.scp", good["enroll.scp"].partition("\n")[2], "enroll.scp: lacks 'bad-s1'"),
        ("utt2spk", good["utt2spk"].replace("m0-s1 s1", "m0-s1 ana"), "'m0-s1' is no target of a mixture"),
        ("wav.scp", good["wav.scp"].replace("m0 ", "m7 "), "'m0-s0' is no target of a mixture"),
        ("wav.scp", good["wav.scp"].replace("m0 ", "m0 cat ").replace("m0.wav", "m0.wav |"), "is a command"),
    ):
        (folder / name).write_text(text)
        with pytest.raises(DataError, match=fault):
            read_jobs(folder)
        (folder / name).write_text(good[name])
    assert len(read_jobs(folder)) == 3

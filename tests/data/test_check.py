"""`data check` names every fault of a directory at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speakerkit.data.check import KINDS, CheckReport, check_data_dir
from speakerkit.errors import DataError

RATE = 16000


def tone(path: Path, seconds: float = 0.2, rate: int = RATE, level: float = 0.3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, level * np.sin(np.arange(round(seconds * rate)) * 0.2), rate, subtype="PCM_16")
    return path


def rows(report: CheckReport) -> dict[str, tuple[int, str]]:
    return {row.kind: (row.count, " | ".join(row.examples)) for row in report.rows}


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Two speakers with two utterances each."""
    keys = [f"{speaker}-{number}" for speaker in ("ana", "bo") for number in range(2)]
    wavs = {key: tone(tmp_path / "wav" / f"{key}.wav") for key in keys}
    (tmp_path / "wav.scp").write_text("".join(f"{key} {path}\n" for key, path in wavs.items()))
    (tmp_path / "utt2spk").write_text("".join(f"{key} {key.split('-')[0]}\n" for key in keys))
    (tmp_path / "spk2utt").write_text("ana ana-0 ana-1\nbo bo-0 bo-1\n")
    (tmp_path / "trials").write_text("ana-0 ana-1 target\nana-0 bo-1 nontarget\n")
    return tmp_path


@pytest.fixture
def faulty(clean: Path) -> Path:
    """A directory with every fault there is."""
    wav = clean / "wav"
    (wav / "text.wav").write_text("this is text")
    (wav / "void.wav").touch()
    tone(wav / "none.wav", 0)
    tone(wav / "slow.wav", rate=8000)
    tone(wav / "quiet.wav", level=0.0)
    whole = tone(wav / "cut.wav", 1.0).read_bytes()
    (wav / "cut.wav").write_bytes(whole[: len(whole) // 2])
    whole = tone(wav / "torn.flac", 4.0).read_bytes()
    (wav / "torn.flac").write_bytes(whole[: len(whole) // 2])
    with open(clean / "wav.scp", "a") as stream:
        for name in ("text", "void", "none", "slow", "quiet", "cut", "gone"):
            stream.write(f"ana-{name} {wav / name}.wav\n")
        stream.write(f"ana-torn {wav}/torn.flac\n")
        stream.write(f"ana-0 {wav / 'bo-0.wav'}\nana-pipe sox x.mp3 -t wav - |\nonecolumn\n")
        stream.write(f"nobody {wav / 'bo-0.wav'}\ncy-0 {wav / 'bo-1.wav'}\n")
    with open(clean / "utt2spk", "a") as stream:
        stream.writelines(
            f"ana-{name} ana\n" for name in ("text", "void", "none", "slow", "quiet", "cut", "gone", "pipe")
        )
        stream.write("ghost bo\ncy-0 cy\nbo-1 ana\n")
    (clean / "trials").write_text("ana-0 bo-1 nontarget\nana-0 missing target\nana-0 bo-1\n")
    noise = clean / "noise"
    tone(noise / "x.wav")
    (noise / "wav.scp").write_text(
        f"noise/x {noise}/x.wav\nplain {noise}/x.wav\nodd {noise}/x.wav\nmusic/gone {noise}/gone.wav\n"
    )
    (noise / "utt2type").write_text("odd thunder\n")
    return clean


def test_a_clean_directory_has_no_rows(clean: Path) -> None:
    report = check_data_dir(clean, sample_rate=RATE, decode=True)
    assert report.ok
    assert report.rows == ()
    assert (report.utterances, report.speakers, report.rates) == (4, 2, {RATE: 4})
    assert report.seconds == pytest.approx(0.8)
    assert "no errors" in report.to_table()


def test_every_fault_is_named(faulty: Path) -> None:
    report = check_data_dir(faulty, sample_rate=RATE, decode=True, noise=faulty / "noise")
    found = rows(report)
    expected = {
        "malformed line": (2, ["onecolumn", "ana-0 bo-1"]),
        "duplicate id": (2, ["wav.scp: ana-0", "utt2spk: bo-1"]),
        "command in scp": (1, ["ana-pipe"]),
        "missing audio": (2, ["wav.scp: ana-gone", "noise: music/gone"]),
        "empty audio": (2, ["ana-void", "ana-none"]),
        "unreadable audio": (3, ["ana-text", "ana-cut", "ana-torn"]),
        "wrong rate": (1, ["slow.wav has 8000 Hz, not 16000"]),
        "trial without audio": (1, ["missing (in 1 trials)"]),
        "noise without type": (2, ["plain has none", "odd has the unknown type 'thunder'"]),
        "silent audio": (1, ["ana-quiet"]),
        "one-utterance speaker": (1, ["cy"]),
    }
    for kind, (count, names) in expected.items():
        assert found[kind][0] == count, (kind, found.get(kind))
        for name in names:
            assert name in found[kind][1]
    disagreement = next(row for row in check_data_dir(faulty, examples=99).rows if row.kind == "list disagreement")
    text = " | ".join(disagreement.examples)
    for part in ("nobody is not in utt2spk", "ghost is not in wav.scp", "ana-gone is of nobody in spk2utt"):
        assert part in text
    assert not report.ok
    assert set(found) <= set(KINDS)


def test_only_decoding_shows_damage_behind_the_header(faulty: Path) -> None:
    found = rows(check_data_dir(faulty))
    assert "ana-cut" in found["unreadable audio"][1]
    assert "ana-torn" not in found["unreadable audio"][1]
    assert "silent audio" not in found
    assert found["mixed rates"][0] == 2


def test_warnings_alone_are_ok(clean: Path) -> None:
    tone(clean / "wav/cy.wav", rate=8000)
    for name, value in (("wav.scp", str(clean / "wav/cy.wav")), ("utt2spk", "cy")):
        with open(clean / name, "a") as stream:
            stream.write(f"cy-0 {value}\n")
    with open(clean / "spk2utt", "a") as stream:
        stream.write("cy cy-0\n")
    report = check_data_dir(clean)
    assert set(rows(report)) == {"one-utterance speaker", "mixed rates"}
    assert report.ok


def test_empty_lists_are_faults(tmp_path: Path) -> None:
    for name in ("wav.scp", "utt2spk"):
        (tmp_path / name).write_text("\n")
    assert rows(check_data_dir(tmp_path)) == {"empty list": (2, f"{tmp_path}/wav.scp | {tmp_path}/utt2spk")}


def test_missing_lists_are_faults_and_missing_folders_errors(tmp_path: Path) -> None:
    assert rows(check_data_dir(tmp_path))["missing list"][0] == 2
    with pytest.raises(DataError, match="no such directory"):
        check_data_dir(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no such file"):
        check_data_dir(tmp_path, trials=tmp_path / "trials")


def test_commands_are_allowed_when_asked_for_and_never_run(clean: Path) -> None:
    with open(clean / "wav.scp", "a") as stream:
        stream.write(f"ana-2 touch {clean}/ran |\n")
    with open(clean / "utt2spk", "a") as stream:
        stream.write("ana-2 ana\n")
    (clean / "spk2utt").unlink()
    assert not check_data_dir(clean).ok
    assert check_data_dir(clean, allow_pipes=True, decode=True).ok
    assert not (clean / "ran").exists()


def test_a_directory_named_as_audio_is_unreadable(clean: Path) -> None:
    (clean / "wav/ana-0.wav").unlink()
    (clean / "wav/ana-0.wav").mkdir()
    assert rows(check_data_dir(clean))["unreadable audio"][0] == 1


def test_same_report_for_any_number_of_workers(faulty: Path) -> None:
    one, many = (check_data_dir(faulty, decode=True, workers=workers) for workers in (1, 6))
    assert one == many


def test_command_exits_with_2_on_errors_and_prints_json(faulty: Path) -> None:
    from speakerkit.cli.data import app

    table = CliRunner().invoke(app, ["check", str(faulty)])
    assert table.exit_code == 2
    assert "duplicate id" in table.stdout
    result = CliRunner().invoke(app, ["check", str(faulty), "--json", "--rate", "16000"])
    report = json.loads(result.stdout)
    assert result.exit_code == 2
    assert report["ok"] is False
    assert {row["kind"] for row in report["rows"]} >= {"missing audio", "wrong rate"}


def test_command_exits_with_0_on_a_clean_directory(clean: Path) -> None:
    from speakerkit.cli.data import app

    assert CliRunner().invoke(app, ["check", str(clean), "--decode"]).exit_code == 0


@pytest.mark.slow
def test_100_000_lines_take_less_than_30_seconds(tmp_path: Path) -> None:
    files = [tone(tmp_path / "wav" / f"{number}.wav", 0.05) for number in range(2000)]
    with open(tmp_path / "wav.scp", "w") as scp, open(tmp_path / "utt2spk", "w") as speakers:
        for number in range(100_000):
            link = tmp_path / "wav" / f"link-{number}.wav"
            link.hardlink_to(files[number % len(files)])
            scp.write(f"k{number:06d} {link}\n")
            speakers.write(f"k{number:06d} s{number % 500}\n")
    start = time.perf_counter()
    assert check_data_dir(tmp_path, sample_rate=RATE).ok
    assert time.perf_counter() - start < 30

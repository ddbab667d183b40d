"""Mixtures on disk: genuine metadata, the published arithmetic done again in a few lines, drawn metadata, rooms."""

from __future__ import annotations

import csv
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speakerkit.data.lists import Utterance, read_table, write_data_dir
from speakerkit.data.mixing import generation
from speakerkit.data.mixing.drawing import DrawSettings, draw_recipes, loudness, split_speakers
from speakerkit.data.mixing.generation import extended, located, published_folder, render, write_mixtures
from speakerkit.data.mixing.lists import read_mixture_dir
from speakerkit.data.mixing.recipes import read_recipes, turns_of, write_recipes
from speakerkit.data.mixing.rooms import RoomSettings, room_responses
from speakerkit.data.prepare.librimix import write_drawn
from speakerkit.data.sources import speech_spans
from speakerkit.errors import ConfigError, DataError
from tests.command import speakerkit
from tests.conftest import speech_like

pyloudnorm = pytest.importorskip("pyloudnorm")

LIBRIMIX = {"Libri2Mix_libri2mix_dev-clean.csv": 2, "Libri3Mix_libri3mix_dev-clean.csv": 3}
SPARSE = {"sparse_2_0.2.json": 2, "sparse_2_1.json": 2, "sparse_3_0.json": 3, "sparse_3_0.4.json": 3}


@pytest.fixture
def published(real_data: Path) -> Path:
    return real_data / "librimix-metadata"


def test_genuine_librimix_rows(published: Path) -> None:
    for name, count in LIBRIMIX.items():
        recipes = read_recipes(published / name)
        with open(published / name, newline="") as stream:
            rows = list(csv.DictReader(stream))
        with open(published / name.replace(".csv", "_info.csv"), newline="") as stream:
            infos = {row["mixture_ID"]: row for row in csv.DictReader(stream)}
        assert len(recipes) == len(rows) == 39
        for recipe, row in zip(recipes, rows, strict=True):
            assert recipe.key == row["mixture_ID"] == "_".join(recipe.utterances)
            info = infos[recipe.key]
            for number in range(count):
                (piece,) = recipe.sources[number]
                assert piece.path == row[f"source_{number + 1}_path"]
                assert repr(piece.gain) == row[f"source_{number + 1}_gain"]
                assert recipe.speakers[number] == info[f"speaker_{number + 1}_ID"].removesuffix(".0")
            assert recipe.noise is not None
            assert (recipe.noise.path, repr(recipe.noise.gain)) == (row["noise_path"], row["noise_gain"])
        assert len(recipes[0].sources) == count


def test_metadata_round_trip(published: Path, tmp_path: Path) -> None:
    for name in LIBRIMIX:
        recipes = read_recipes(published / name)
        write_recipes(tmp_path / "metadata.csv", recipes)
        assert read_recipes(tmp_path / "metadata.csv") == recipes


def test_genuine_sparse_entries(published: Path) -> None:
    for name, count in SPARSE.items():
        recipes = read_recipes(published / name)
        entries = json.loads((published / name).read_text())
        for recipe, entry in zip(recipes, entries, strict=True):
            assert len(recipe.sources) == count
            assert recipe.key == entry["mixture_name"]
            # USED's name of a mixture, by which its enrolments are listed.
            assert recipe.alias == "_".join(entry[f"s{number + 1}"][0]["utt_id"] for number in range(count))
            assert recipe.speakers == tuple(entry[f"s{number + 1}"][0]["spk_id"] for number in range(count))
            times = [(seg["start"], seg["stop"]) for number in range(count) for seg in entry[f"s{number + 1}"]]
            np.testing.assert_allclose([turn[:2] for turn in turns_of(recipe)], times, atol=1e-9)
            assert recipe.noise is not None
            assert recipe.noise.channel in (0, 1)


def overlap_share(name: Path) -> float:
    both = spoken = 0
    for recipe in read_recipes(name):
        turns = turns_of(recipe)
        active = np.zeros((len(recipe.speakers), round(1000 * max(end for _, end, _ in turns))), dtype=bool)
        for start, end, speaker in turns:
            active[recipe.speakers.index(speaker), round(1000 * start) : round(1000 * end)] = True
        both += int((active.sum(axis=0) > 1).sum())
        spoken += int(active.any(axis=0).sum())
    return both / spoken


def test_overlap_of_sparse_entries_is_near_that_of_all(published: Path) -> None:
    """Of the 500 of each, overlap over speech is 0.201, 0.569, 0 and 0.578; these are 5 each."""
    assert overlap_share(published / "sparse_2_0.2.json") == pytest.approx(0.201, abs=0.05)
    assert overlap_share(published / "sparse_3_0.json") == 0
    assert overlap_share(published / "sparse_3_0.4.json") == pytest.approx(0.578, abs=0.05)
    assert overlap_share(published / "sparse_2_1.json") > 0.5


def write_sources(folder: Path, paths: list[str], seconds: float = 1.0, channels: int = 1) -> None:
    for number, path in enumerate(sorted(set(paths))):
        samples = np.stack(
            [speech_like(seconds + 0.137 * (number % 5), seed=number + 50 * channel) for channel in range(channels)], 1
        )
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(place, 0.3 * samples, 16000, subtype="PCM_16")


def corpus(recipes: list, folder: Path, seconds: float = 1.0, noise_seconds: float = 3.0) -> tuple[Path, Path]:
    """Made-up recordings under the names of LibriSpeech's and WHAM's."""
    write_sources(
        folder / "speech", [piece.path for each in recipes for source in each.sources for piece in source], seconds
    )
    write_sources(folder / "noise", [each.noise.path for each in recipes], noise_seconds, channels=2)
    return folder / "speech", folder / "noise"


def by_hand(row: dict[str, str], speech: Path, noise: Path, rate: int, mode: str, count: int) -> list[np.ndarray]:
    """LibriMix in a few lines: sources and noise."""
    parts = [
        soundfile.read(speech / row[f"source_{number}_path"], dtype="float32")[0] for number in range(1, count + 1)
    ]
    gains = [float(row[f"source_{number}_gain"]) for number in range(1, count + 1)] + [float(row["noise_gain"])]
    parts.append(soundfile.read(noise / row["noise_path"], dtype="float32")[0][: max(map(len, parts)), 0])
    made = [resample_poly(part * gain, rate, 16000) for part, gain in zip(parts, gains, strict=True)]
    size = min(map(len, made)) if mode == "min" else max(map(len, made))
    return [np.concatenate([part, np.zeros(size)])[:size] for part in made]


@pytest.mark.parametrize(("rate", "mode"), [(8000, "min"), (16000, "max")])
def test_librimix_is_made_as_published(published: Path, tmp_path: Path, rate: int, mode: str) -> None:
    name = "Libri3Mix_libri3mix_dev-clean.csv"
    lines = (published / name).read_text().splitlines()[:4]
    metadata = tmp_path / "libri3mix_dev-clean.csv"
    metadata.write_text("\n".join(lines) + "\n")
    speech, noise = corpus(read_recipes(metadata), tmp_path)
    ran = speakerkit(
        *("data", "librimix", metadata, tmp_path / "out", "--librispeech", speech, "--wham", noise),
        *("--rate", rate, "--mode", mode),
    )
    assert ran.code == 0, ran.errors
    folder = tmp_path / "out" / "Libri3Mix" / f"wav{rate // 1000}k" / mode / "dev"
    for row in csv.DictReader(lines):
        *sources, background = by_hand(row, speech, noise, rate, mode, 3)
        expected = {f"s{number + 1}": source for number, source in enumerate(sources)}
        expected |= {"noise": background, "mix_clean": sum(sources), "mix_both": sum(sources) + background}
        expected["mix_single"] = sources[0] + background
        for kind, samples in expected.items():
            written, own = soundfile.read(folder / kind / f"{row['mixture_ID']}.wav", dtype="int16")
            assert own == rate
            np.testing.assert_allclose(written, np.clip(samples * 32768, -32768, 32767), atol=1.01)
    for kind, columns in {
        "mix_clean": "mixture_ID,mixture_path,source_1_path,source_2_path,source_3_path,length",
        "mix_both": "mixture_ID,mixture_path,source_1_path,source_2_path,source_3_path,noise_path,length",
        "mix_single": "mixture_ID,mixture_path,source_1_path,noise_path,length",
    }.items():
        table = (folder.parent / "metadata" / f"mixture_dev_{kind}.csv").read_text().splitlines()
        assert table[0] == columns
        assert len(table) == 4
        first = table[1].split(",")
        assert int(first[-1]) == soundfile.info(first[1]).frames


def test_a_short_noise_is_repeated_with_a_fade() -> None:
    """Half-Hann ramps add up to one: a constant stays constant; what is heard begins anew after each fade."""
    assert extended(np.ones(12000), 50000, 8000) == pytest.approx(1.0)
    ramp = np.arange(12000.0)
    longer = extended(ramp, 30000, 8000)
    assert len(longer) == 30000
    assert np.array_equal(longer[: 12000 - 4001], ramp[: 12000 - 4001])
    assert np.array_equal(longer[12000 : 12000 + 12000 - 2 * 4001], ramp[4001 : 12000 - 4001])
    with pytest.raises(DataError, match="too short to be repeated"):
        extended(np.ones(2000), 30000, 8000)


def test_sparse_is_made_as_published(published: Path, tmp_path: Path) -> None:
    entries = json.loads((published / "sparse_3_0.4.json").read_text())[:2]
    metadata = tmp_path / "sparse_3_0.4" / "metadata.json"
    metadata.parent.mkdir()
    metadata.write_text(json.dumps(entries))
    speech, noise = corpus(read_recipes(metadata), tmp_path, seconds=16.0, noise_seconds=17.0)
    rate = 8000
    ran = speakerkit(
        *("data", "librimix", metadata, tmp_path / "out", "--librispeech", speech, "--wham", noise, "--rate", rate)
    )
    assert ran.code == 0, ran.errors
    meter = pyloudnorm.Meter(rate, block_size=0.1)
    for entry in entries:
        placed = {}
        for name in ("s1", "s2", "s3", "noise"):
            placed[name] = []
            for segment in entry[name]:
                heard, own = soundfile.read((noise if name == "noise" else speech) / segment["file"])
                heard = heard[int(segment["orig_start"] * own) : int(segment["orig_stop"] * own)]
                heard = heard[:, segment["channel"]] if heard.ndim == 2 and name == "noise" else heard.reshape(-1)
                heard = resample_poly(heard - heard.mean(), rate, own)
                heard = pyloudnorm.normalize.loudness(heard, meter.integrated_loudness(heard), segment["lvl"])
                placed[name].append(np.concatenate([np.zeros(int(segment["start"] * rate)), heard]))
        size = max(len(each) for parts in placed.values() for each in parts)
        whole = {name: sum(np.pad(each, (0, size - len(each))) for each in parts) for name, parts in placed.items()}
        clean = whole["s1"] + whole["s2"] + whole["s3"]
        expected = {**whole, "mix_clean": clean, "mix_noisy": clean + whole["noise"]}
        for name, samples in expected.items():
            path = tmp_path / "out" / "sparse_3_0.4" / f"wav{rate}" / name / f"{entry['mixture_name']}.wav"
            written, _ = soundfile.read(path, dtype="int16")
            np.testing.assert_allclose(written, np.clip(samples * 32768, -32768, 32767), atol=1.01)


def test_clean_mixtures_need_no_noise_and_missing_sources_are_named_first(published: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "libri2mix_test-clean.csv"
    lines = (published / "Libri2Mix_libri2mix_dev-clean.csv").read_text().splitlines()[:4]
    metadata.write_text("\n".join(lines) + "\n")
    recipes = read_recipes(metadata)
    speech, _ = corpus(recipes, tmp_path)
    ran = speakerkit("data", "librimix", metadata, tmp_path / "out", "--librispeech", speech, "--rate", 8000)
    assert ran.code == 0, ran.errors
    folder = tmp_path / "out" / "Libri2Mix" / "wav8k" / "max" / "test"
    assert sorted(path.name for path in folder.iterdir()) == ["generated.json", "mix_clean", "s1", "s2"]
    ran = speakerkit(
        *("data", "librimix", metadata, tmp_path / "out", "--librispeech", speech, "--types", "mix_both"),
    )
    assert ran.code == 2
    assert "has no noise for 3 mixtures" in ran.errors[0]
    for path in ("a", "b"):
        (speech / recipes[1].sources[{"a": 0, "b": 1}[path]][0].path).unlink()
    ran = speakerkit("data", "librimix", metadata, tmp_path / "new", "--librispeech", speech)
    assert ran.code == 2
    assert "lacks 2 of the 6 recordings" in ran.errors[0]
    damaged = speech / recipes[0].sources[0][0].path
    damaged.write_bytes(b"no audio")
    with pytest.raises(DataError, match="1 of 2 sources cannot be read"):
        write_mixtures(located(recipes[:1], speech, None), tmp_path / "new", 8000)
    assert not (tmp_path / "new").exists()


def test_space_is_looked_for_first(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = read_recipes(published / "Libri2Mix_libri2mix_dev-clean.csv")[:2]
    speech, _ = corpus(recipes, tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(DataError, match="GB are to be written"):
        write_mixtures(located(recipes, speech, None), tmp_path / "out", 8000)
    assert not (tmp_path / "out").exists()


def test_names_of_published_folders(published: Path) -> None:
    recipes = read_recipes(published / "Libri2Mix_libri2mix_dev-clean.csv")
    names = {
        "libri2mix_train-clean-100.csv": "Libri2Mix/wav16k/min/train-100",
        "libri2mix_test-clean.csv": "Libri2Mix/wav16k/min/test",
    }
    for name, folder in names.items():
        assert str(published_folder(name, recipes, 16000, "min")) == folder


@pytest.mark.parametrize(
    "text",
    [
        "mixture_ID,source_1_path,source_1_gain\nm,a.flac,much\n",
        "mixture_ID,source_1_path\nm,a.flac\n",
        "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain\nm,1-2-3.flac,1,1-2-4.flac,1\n",
        "mixture_ID,source_1_path,source_1_gain\nm,1-2-3.flac,1\nm,1-2-3.flac,1\n",
        "mixture_ID,source_1_path,source_1_gain\n../m,1-2-3.flac,1\n",
        "mixture_ID,source_1_path,source_1_gain\nm,1-2-3.flac,nan\n",
        "mixture_ID\n",
        "",
    ],
)
def test_bad_metadata(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError):
        read_recipes(tmp_path / "m.csv")


@pytest.mark.parametrize(
    "text", ["{}", "[]", "[1]", '[{"mixture_name": "m"}]', '[{"mixture_name": "m", "s1": []}]', "x"]
)
def test_bad_sparse_metadata(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError):
        read_recipes(tmp_path / "m.json")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six speakers with three utterances of 1 to 3 s."""
    folder = tmp_path_factory.mktemp("voices")
    utterances = []
    for number in range(18):
        path = folder / f"s{number % 6}-{number}.wav"
        soundfile.write(path, speech_like(1.0 + number % 3, 16000, number), 16000)
        utterances.append(Utterance(path.stem, f"s{number % 6}", str(path)))
    write_data_dir(folder, utterances)
    return folder


def voices(folder: Path) -> list[Utterance]:
    from speakerkit.data.sources import read_sources

    return read_sources(folder)


def test_drawn_mixtures_are_as_asked(source: Path) -> None:
    settings = DrawSettings((2, 3), overlap=(0.4, 0.4), loudness=(-28, -28), sir=(3, 3), snr=(6, 6))
    noise = str(source / "s0-0.wav")
    by_key = {utterance.key: utterance for utterance in voices(source)}
    recipes = draw_recipes(list(by_key.values()), settings, 18, 0, [noise])
    assert {recipe.utterances[0] for recipe in recipes} == set(by_key)  # each first in one
    for recipe in recipes:
        made = render(recipe, 16000, "max", noisy=True)
        levels = []
        for (piece,) in recipe.sources:
            samples = soundfile.read(piece.path)[0] * piece.gain
            levels.append(pyloudnorm.Meter(16000).integrated_loudness(samples))
        assert levels == pytest.approx([-28, -31, -31][: len(levels)], abs=0.1)
        assert made.noise is not None
        assert np.abs(made.mix("mix_both")).max() <= 0.91
        for utterance, speaker, enrolment in zip(recipe.utterances, recipe.speakers, recipe.enrolments, strict=True):
            other = Path(enrolment).stem
            assert by_key[other].speaker == speaker
            assert other != utterance
        lengths = [soundfile.info(piece.path).duration for (piece,) in recipe.sources]
        end = lengths[0]
        for number in range(1, len(lengths)):
            start = recipe.sources[number][0].start
            assert end - start == pytest.approx(0.4 * min(lengths[number - 1 : number + 1]), abs=0.001)
            end = max(end, start + lengths[number])


def test_loud_mixtures_are_made_quieter_as_a_whole(source: Path) -> None:
    settings = DrawSettings(loudness=(-6, -6), sir=(2, 2))
    for recipe in draw_recipes(voices(source), settings, 4, 0):
        made = render(recipe, 16000)
        peak = max(float(np.abs(each).max()) for each in (made.mix("mix_clean"), *made.sources))
        assert peak == pytest.approx(0.9, abs=1e-3)
        pieces = [piece for (piece,) in recipe.sources]
        levels = [loudness(soundfile.read(each.path)[0] * (each.gain or 0), 16000, "") for each in pieces]
        assert levels[0] - levels[1] == pytest.approx(2, abs=0.01)


def test_written_set_is_the_same_for_any_number_of_workers_and_resumes(source: Path, tmp_path: Path) -> None:
    settings = DrawSettings((2, 3), overlap=(0.0, 1.0))
    noises = [str(source / "s0-6.wav")]
    for name, workers in (("one", 1), ("two", 3)):
        write_drawn(voices(source), tmp_path / name, settings, 4, 7, rate=8000, noises=noises, workers=workers)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len([path for path in files if path.suffix == ".wav"]) == 4 * 3 + sum(
        len(each.targets) for each in read_mixture_dir(tmp_path / "one")
    )
    for path in files:
        one, two = ((tmp_path / name / path).read_bytes() for name in ("one", "two"))
        assert one.replace(b"/one/", b"/two/") == two, path
    gone = tmp_path / "two" / "mix_both" / "mix000002.wav"
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "s1").iterdir()}
    before = gone.read_bytes()
    gone.unlink()
    write_drawn(voices(source), tmp_path / "two", settings, 4, 7, rate=8000, noises=noises)
    assert gone.read_bytes() == before
    assert {path for path, time in kept.items() if path.stat().st_mtime_ns != time} == {
        tmp_path / "two" / "s1" / "mix000002.wav"
    }
    with pytest.raises(DataError, match="other metadata or settings"):
        write_drawn(voices(source), tmp_path / "two", settings, 4, 8, rate=8000, noises=noises)


def test_mixtures_keep_the_noise_that_they_have(source: Path, tmp_path: Path) -> None:
    """Clean ones may get one later; then neither its level nor its name may change."""
    quiet = DrawSettings(loudness=(-40, -40), snr=(20, 20))
    one, other = ([str(source / f"s0-{number}.wav")] for number in (6, 12))
    write_drawn(voices(source), tmp_path, quiet, 2, 0, rate=8000)
    write_drawn(voices(source), tmp_path, quiet, 2, 0, rate=8000, noises=one)
    before = (tmp_path / "metadata.csv").read_bytes()
    for settings, noises in ((quiet, other), (replace(quiet, snr=(10, 10)), one)):
        with pytest.raises(DataError, match="other metadata or settings"):
            write_drawn(voices(source), tmp_path, settings, 2, 0, rate=8000, noises=noises)
    assert (tmp_path / "metadata.csv").read_bytes() == before
    write_drawn(voices(source), tmp_path, quiet, 2, 0, rate=8000)  # clean ones are what they were
    with pytest.raises(DataError, match="other metadata or settings"):
        write_drawn(voices(source), tmp_path, quiet, 2, 0, rate=8000, noises=other)


@pytest.mark.parametrize("samples", [1, 50, 51])
def test_a_noise_no_longer_than_the_fade_is_not_repeated(samples: int) -> None:
    noise = np.ones(samples)
    with pytest.raises(DataError, match="too short to be repeated"):
        extended(noise, samples + 1, 100)
    assert np.array_equal(extended(noise, samples, 100), noise)
    assert len(extended(np.ones(52), 60, 100)) == 60


@pytest.mark.parametrize("rate", [0, -8000, 400_000])
@pytest.mark.parametrize("command", ["librimix", "mixtures", "rooms"])
def test_rates_that_no_recording_has(command: str, rate: int, tmp_path: Path) -> None:
    given = {"librimix": ("m.csv", tmp_path, "--librispeech", tmp_path), "mixtures": (tmp_path, tmp_path / "out")}
    ran = speakerkit("data", command, *given.get(command, (tmp_path / "out",)), "--rate", rate)
    assert ran.code == 2
    assert "--rate" in " ".join(ran.errors)


def test_absent_targets_and_genders_of_drawn_mixtures(source: Path, tmp_path: Path) -> None:
    (tmp_path / "voices").mkdir()
    for name in ("wav.scp", "utt2spk"):
        (tmp_path / "voices" / name).write_text((source / name).read_text())
    (tmp_path / "voices" / "spk2gender").write_text("".join(f"s{number} {'mf'[number % 2]}\n" for number in range(6)))
    options = ["--count", 12, "--rate", 8000, "--absent-share", 0.5, "--max-speakers", 3]
    ran = speakerkit("data", "mixtures", tmp_path / "voices", tmp_path / "out", *options)
    assert ran.code == 0, ran.errors
    recipes = {recipe.key: recipe for recipe in read_recipes(tmp_path / "out" / "metadata.csv")}
    absent = 0
    for listed in read_mixture_dir(tmp_path / "out"):
        missing = [target for target in listed.targets if not target.reference]
        absent += len(missing)
        for target in missing:
            assert target.speaker not in recipes[listed.key].speakers
            assert Path(target.enrolment).stem.startswith(f"{target.speaker}-")
            assert target.speaker not in {speaker for _, _, speaker in listed.turns}
    assert 2 < absent < 10
    heard = {speaker for recipe in recipes.values() for speaker in recipe.speakers}
    genders = read_table(tmp_path / "out" / "spk2gender")
    assert genders == {speaker: "mf"[int(speaker[1]) % 2] for speaker in heard}


def test_turns_of_drawn_mixtures_are_where_the_sources_speak(source: Path, tmp_path: Path) -> None:
    write_drawn(voices(source), tmp_path / "set", DrawSettings(overlap=(0.2, 0.2)), 3, 0)
    for listed in read_mixture_dir(tmp_path / "set"):
        for target in listed.targets:
            samples, rate = soundfile.read(target.reference, dtype="float32")
            expected = speech_spans(samples, rate)
            told = [(start, end) for start, end, speaker in listed.turns if speaker == target.speaker]
            np.testing.assert_allclose(told, expected, atol=0.001)


def test_splits_share_no_speaker(source: Path, tmp_path: Path) -> None:
    options = ["--count", 6, "--split", "train=0.67", "--split", "test=0.33", "--rate", 8000]
    ran = speakerkit("data", "mixtures", source, tmp_path / "out", *options)
    assert ran.code == 0, ran.errors
    parts = [read_mixture_dir(tmp_path / "out" / name) for name in ("train", "test")]
    speakers = [{target.speaker for each in part for target in each.targets} for part in parts]
    assert [len(part) for part in parts] == [4, 2]
    assert not speakers[0] & speakers[1]
    with pytest.raises(ConfigError):
        split_speakers(voices(source), [0.9, 0.3], 0)
    ran = speakerkit("data", "mixtures", source, tmp_path / "out", "--split", "train")
    assert ran.code == 2
    assert "NAME=SHARE" in ran.errors[0]


def test_what_cannot_be_drawn(source: Path, tmp_path: Path) -> None:
    few = [each for each in voices(source) if each.speaker == "s0"]
    with pytest.raises(DataError, match="1 speakers with two utterances"):
        draw_recipes(few, DrawSettings(), 2, 0)
    short = tmp_path / "short.wav"
    soundfile.write(short, speech_like(0.2), 16000)
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16000), 16000)
    bad = [
        Utterance(f"{name}{number}", name, str(path)) for name, path in (("a", short), ("b", silent)) for number in "12"
    ]
    with pytest.raises(DataError, match="2 recordings cannot be mixed"):
        draw_recipes(bad, DrawSettings(), 4, 0)
    with pytest.raises(DataError, match="none of 1 noises lasts 1 s"):
        draw_recipes(voices(source), DrawSettings(), 2, 0, [str(short)])
    with pytest.raises(ConfigError):
        write_drawn(voices(source), tmp_path / "x", DrawSettings(overlap=(0.5, 1.0)), 2, 0, mode="min")
    with pytest.raises(ConfigError):
        DrawSettings(overlap=(0.5, 1.5))


def test_rooms_sound_as_long_as_they_should(tmp_path: Path) -> None:
    """Energy decays by 60 dB in about the asked time (Schroeder's backward integral); places of a room differ."""
    pytest.importorskip("pyroomacoustics")
    for seconds in (0.3, 0.5):
        responses = room_responses(RoomSettings(8000, 2, (seconds, seconds)), 0, 1)
        assert not np.array_equal(*(each[:500] for each in responses))
        for response in responses:
            assert np.isfinite(response).all()
            assert np.abs(response).max() == 1
            left = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
            level = 10 * np.log10(left / left[0])
            slope = np.polyfit(
                np.arange(len(level))[(level < -5) & (level > -25)] / 8000, level[(level < -5) & (level > -25)], 1
            )[0]
            assert -60 / slope == pytest.approx(seconds, rel=0.35)
    again = room_responses(RoomSettings(8000, 2, (0.3, 0.3)), 0, 1)
    assert np.array_equal(again[0], room_responses(RoomSettings(8000, 2, (0.3, 0.3)), 0, 1)[0])
    ran = speakerkit("data", "rooms", tmp_path / "rooms", "--count", 2, "--places", 2, "--rate", 8000)
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'rooms'}: 2 rooms, 4 responses\n")
    assert (tmp_path / "rooms" / "room00001" / "1.wav").exists()
    ran = speakerkit("data", "rooms", tmp_path / "rooms", "--seed", 1)
    assert "other settings" in ran.errors[0]


def test_generation_needs_a_folder_of_its_own(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    recipes = draw_recipes(voices(source), DrawSettings(), 1, 0)
    with pytest.raises(DataError, match="is not empty"):
        generation.write_mixtures(recipes, tmp_path, 8000)

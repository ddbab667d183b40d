"""Mixtures on the fly and prepared ones: what is summed, where, how loud, with which enrolment, and by which chance."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.data.lists import Utterance, write_data_dir, write_utterance_list
from speakerkit.data.mixing.drawing import DrawSettings
from speakerkit.data.prepare.librimix import write_drawn
from speakerkit.data.shards import write_shards
from speakerkit.data.sources import read_genders, read_sources, read_voices
from speakerkit.data.stores import FileStore
from speakerkit.errors import ConfigError, DataError
from speakerkit.extraction import mixtures
from speakerkit.extraction.mixtures import Mixture, Mixtures, MixtureSettings, PreparedMixtures

RATE = 8000
SPEAKERS, EACH = 5, 3


def tone(speaker: int, number: int) -> float:
    """Hz of utterance ``number`` of a speaker: every utterance has its own."""
    return 200.0 + 250 * speaker + 60 * number


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five speakers with three utterances of 2, 3 and 4 s, each a tone of its own; all sound, no pauses."""
    folder = tmp_path_factory.mktemp("tones")
    utterances = []
    for speaker in range(SPEAKERS):
        for number in range(EACH):
            time = np.arange((2 + number) * RATE) / RATE
            path = folder / f"s{speaker}-{number}.wav"
            soundfile.write(path, 0.2 * np.sin(2 * np.pi * tone(speaker, number) * time), RATE)
            utterances.append(Utterance(path.stem, f"s{speaker}", str(path)))
    write_data_dir(folder, utterances)
    return folder


def settings(**values: object) -> MixtureSettings:
    plain = {"sample_rate": RATE, "seconds": 1.5, "noise_share": 1.0, "reverb_share": 1.0}
    return MixtureSettings(**{**plain, "enrolment_seconds": (1.0, 2.0), **values})  # type: ignore[arg-type]


def heard(samples: np.ndarray) -> tuple[int, int]:
    """(speaker, number) of the utterance whose tone is the loudest."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * RATE))
    hertz = np.argmax(spectrum) / 8
    best = min(
        (abs(hertz - tone(speaker, number)), speaker, number) for speaker in range(SPEAKERS) for number in range(EACH)
    )
    assert best[0] < 5
    return best[1], best[2]


def decibels(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))


def same(one: Mixture, two: Mixture) -> bool:
    return (
        np.array_equal(one.mixture, two.mixture)
        and np.array_equal(one.targets, two.targets)
        and all(map(np.array_equal, one.enrolments, two.enrolments))
        and (one.speakers, one.activity, one.present.tolist()) == (two.speakers, two.activity, two.present.tolist())
    )


@pytest.fixture
def noise(tmp_path: Path) -> FileStore:
    path = tmp_path / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(3 * RATE), RATE)
    return FileStore("noise", {"noise/n.wav": str(path)})


def test_the_mixture_is_the_sum_of_its_parts(source: Path, noise: FileStore) -> None:
    made = Mixtures(read_voices(source), settings(speakers=(2, 3), snr=(10, 10), sparse_share=0.5), 0, noise)
    for index in range(20):
        mixture = made[index]
        size = round(1.5 * RATE)
        assert mixture.mixture.shape == (size,)
        assert mixture.targets.shape == (len(mixture.speakers), size)
        assert mixture.mixture.dtype == mixture.targets.dtype == np.float32
        assert mixture.noise is not None
        total = mixture.targets.astype(np.float64).sum(axis=0) + mixture.noise
        np.testing.assert_allclose(mixture.mixture, total, atol=1e-6)
        assert np.abs(mixture.mixture).max() <= 0.9 + 1e-6


def test_levels_are_those_asked_for(source: Path, noise: FileStore) -> None:
    asked = settings(speakers=(3, 3), level=(-30, -30), sir=(4, 4), snr=(12, 12))
    mixture = Mixtures(read_voices(source), asked, 0, noise)[3]
    levels = [decibels(target) for target in mixture.targets]
    assert levels == pytest.approx([-30, -34, -34], abs=0.05)
    assert mixture.noise is not None
    assert decibels(mixture.noise) == pytest.approx(-42, abs=0.01)


def test_speakers_and_enrolments_are_who_they_say(source: Path) -> None:
    made = Mixtures(read_voices(source), settings(speakers=(2, 4)), 1)
    counts = set()
    for index in range(20):
        mixture = made[index]
        counts.add(len(mixture.speakers))
        assert len(set(mixture.speakers)) == len(mixture.speakers)
        for name, target, enrolment in zip(mixture.speakers, mixture.targets, mixture.enrolments, strict=True):
            speaker, number = heard(target)
            told, other = heard(enrolment)
            assert name == f"s{speaker}" == f"s{told}"
            assert other != number  # never the utterance in the mixture
            assert RATE <= len(enrolment) <= 2 * RATE
    assert counts == {2, 3, 4}


def test_a_mixture_is_a_function_of_seed_and_number(source: Path, noise: FileStore) -> None:
    voices, asked = (
        read_voices(source),
        settings(absent_share=0.3, sparse_share=0.5, speeds=(1.0, 0.9)),
    )
    made = Mixtures(voices, asked, 5, noise)
    later = [made[index] for index in range(12)]
    other = pickle.loads(pickle.dumps(Mixtures(voices[::-1], asked, 5, noise)))
    assert all(same(other[index], later[index]) for index in (7, 2, 11))
    assert all(same(made[index], later[index]) for index in (11, 0))  # what was drawn between changed nothing
    assert not same(later[0], later[1])
    assert not same(Mixtures(voices, asked, 6, noise)[0], later[0])


def test_mixing_leaves_the_recordings_as_they_are(source: Path) -> None:
    made = Mixtures(read_voices(source), settings(sir=(-10, 10)), 0)
    for index in range(100):
        made[index]
    for (item, _), (samples, _) in made._decoded.items():
        original = soundfile.read(made.voices[item].wav, dtype="float32")[0]  # type: ignore[union-attr]
        assert np.array_equal(samples, original)


def test_each_utterance_is_first_once_an_epoch(source: Path) -> None:
    made = Mixtures(read_voices(source), settings(targets=1), 0)
    count = SPEAKERS * EACH
    assert {heard(made[index].targets[0]) for index in range(count, 2 * count)} == {
        (speaker, number) for speaker in range(SPEAKERS) for number in range(EACH)
    }


def test_sparse_voices_overlap_by_the_share_and_only_there(source: Path) -> None:
    """Mixture and targets are cut at one place: where the activity says silence, the target is zeros."""
    asked = settings(seconds=2.0, sparse_share=1.0, overlap=(0.25, 0.25), speakers=(2, 3))
    made = Mixtures(read_voices(source), asked, 0)
    for index in range(30):
        mixture = made[index]
        active = np.zeros(mixture.targets.shape, dtype=bool)
        for row, spans in enumerate(mixture.activity):
            for first, last in spans:
                active[row, first:last] = True
        loud = np.abs(mixture.targets) > 1e-4
        assert not loud[~active].any()
        assert loud[active].mean() > 0.9
        if len(active) == 2:
            assert active.all(axis=0).mean() == pytest.approx(0.25, abs=0.001)
            assert active.any(axis=0).all()


def test_a_silent_voice_is_a_case_with_its_label(tmp_path: Path) -> None:
    """An utterance of which a third is speech: in some crops it is not heard, the mixture goes on."""
    utterances = []
    for speaker in range(3):
        for number in range(2):
            samples = np.zeros(6 * RATE)
            samples[4 * RATE :] = 0.2 * np.sin(2 * np.pi * (300 + 200 * speaker) * np.arange(2 * RATE) / RATE)
            path = tmp_path / f"{speaker}-{number}.wav"
            soundfile.write(path, samples, RATE)
            utterances.append(Utterance(path.stem, f"s{speaker}", str(path)))
    made = Mixtures(utterances, settings(seconds=1.0), 0)
    silent = 0
    for index in range(40):
        mixture = made[index]
        for present, spans, target in zip(mixture.present, mixture.activity, mixture.targets, strict=True):
            assert present == (sum(last - first for first, last in spans) >= 0.1 * RATE)
            assert np.abs(target).max() > 1e-4 or not present
            silent += not present
        assert np.isfinite(mixture.mixture).all()
    assert 10 < silent < 70


def test_absent_targets_are_not_in_the_mixture(source: Path) -> None:
    made = Mixtures(read_voices(source), settings(targets=1, absent_share=0.5), 0)
    absent = 0
    for index in range(40):
        mixture = made[index]
        (speaker,) = mixture.speakers
        assert heard(mixture.enrolments[0])[0] == int(speaker[1])
        if mixture.present[0]:
            assert heard(mixture.targets[0])[0] == int(speaker[1])
            continue
        absent += 1
        assert not mixture.targets.any()
        assert mixture.activity == ((),)
        spectrum = np.abs(np.fft.rfft(mixture.mixture * np.hanning(len(mixture.mixture)), 8 * RATE))
        own = [spectrum[round(8 * tone(int(speaker[1]), number))] for number in range(EACH)]
        assert max(own) < 0.02 * spectrum.max()
    assert 10 < absent < 30


def test_absent_voices_have_the_speeds_of_the_others(source: Path) -> None:
    made = Mixtures(read_voices(source), settings(targets=1, absent_share=0.5, speeds=(0.9, 1.1)), 0)
    found = {(bool(mixture.present[0]), mixture.speakers[0][2:]) for mixture in map(made.__getitem__, range(30))}
    assert found == {(present, speed) for present in (False, True) for speed in ("*0.9", "*1.1")}


def test_the_curriculum_goes_from_its_start_to_the_end(source: Path) -> None:
    asked = settings(level=(-30, -30), sir=(0, 0), first_sir=(20, 20), curriculum=10)
    made = Mixtures(read_voices(source), asked, 0)
    found = {index: np.subtract(*map(decibels, made[index].targets)) for index in (0, 5, 10, 50)}
    assert found == pytest.approx({0: 20, 5: 10, 10: 0, 50: 0}, abs=0.1)


def test_genders_are_mixed_as_asked(source: Path) -> None:
    genders = {"s0": "F", "s1": "F", "s2": "M", "s3": "M", "s4": "F"}
    voices = read_voices(source)
    for share, expected in ((1.0, {1}), (0.0, {2})):
        made = Mixtures(voices, settings(same_gender_share=share), 0, genders=genders)
        assert {len({genders[name] for name in made[index].speakers}) for index in range(20)} == expected
    with pytest.raises(DataError, match="gender of 1 speakers is not known, 's4'"):
        Mixtures(voices, settings(same_gender_share=0.5), 0, genders={**genders, "s4": ""})
    with pytest.raises(DataError, match="2 of 5 speakers"):
        Mixtures(voices, settings(same_gender_share=0.5, speakers=(3, 3)), 0, genders=genders)


def test_genders_of_both_lists(tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "spk2gender").write_text("a m\nb f\n")
    assert read_genders(tmp_path / "spk2gender") == {"a": "M", "b": "F"}
    known = read_genders(real_data / "librispeech-mini" / "SPEAKERS.TXT")
    assert (known["26"], known["32"], len(known) > 1000) == ("M", "F", True)
    (tmp_path / "spk2gender").write_text("a x\n")
    with pytest.raises(DataError, match="'a' is 'x'"):
        read_genders(tmp_path / "spk2gender")


def test_a_speed_makes_another_speaker(source: Path) -> None:
    made = Mixtures(read_voices(source), settings(speeds=(0.8,)), 0)
    assert made.speakers == [f"s{number}*0.8" for number in range(SPEAKERS)]
    mixture = made[0]
    for name, samples in zip(mixture.speakers * 2, [*mixture.targets, *mixture.enrolments], strict=True):
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * RATE))
        hertz = np.argmax(spectrum) / 8
        own = [0.8 * tone(int(name[1]), number) for number in range(EACH)]
        assert min(abs(hertz - each) for each in own) < 2


def test_voices_are_equalised_by_gains_that_vary_slowly(source: Path) -> None:
    """In white noise, an octave's level is what was drawn; enrolments stay, and levels are those asked for."""
    plain = Mixtures(read_voices(source), settings(noise_share=0.0), 0)
    changed = Mixtures(read_voices(source), settings(noise_share=0.0, equalise=6.0), 0)
    for index in range(4):
        assert all(map(np.array_equal, plain[index].enrolments, changed[index].enrolments))
        for one, other in zip(plain[index].targets, changed[index].targets, strict=True):
            assert heard(other) == heard(one)
            assert decibels(other) == pytest.approx(decibels(one), abs=0.2)
    noise = np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32)
    gains = []
    for seed in range(200):
        filtered = mixtures._equalised(noise, RATE, 4.0, np.random.default_rng(seed))
        assert filtered.dtype == np.float32
        ratio = np.abs(np.fft.rfft(filtered) / np.fft.rfft(noise))
        gains.append(20 * np.log10(ratio[[round(hertz * 8) for hertz in (250, 500, 1000)]]))
        assert np.abs(np.diff(20 * np.log10(ratio[800:]))).max() < 0.1
    assert np.std(gains, axis=0) == pytest.approx([4.0] * 3, rel=0.15)


def test_voices_of_a_mixture_are_in_one_room(source: Path, tmp_path: Path) -> None:
    """Room r of the store only delays by 100 (r + 1) samples more, at place p with p + 1 as its second tap."""
    paths = {}
    for room in range(2):
        for place in range(3):
            response = np.zeros(400)
            response[0], response[100 * (room + 1) + 10 * place] = 0.8, 0.4
            path = tmp_path / f"{room}-{place}.wav"
            soundfile.write(path, response, RATE)
            paths[f"room{room}/{place}.wav"] = str(path)
    asked = settings(speakers=(3, 3), reverb_targets="dry")
    wet = Mixtures(read_voices(source), replace(asked, reverb_targets="wet"), 0, rir=FileStore("rir", paths))
    dry = Mixtures(read_voices(source), asked, 0, rir=FileStore("rir", paths))
    for index in range(6):
        one, two = wet[index], dry[index]
        assert np.array_equal(one.mixture, two.mixture)
        delays = set()
        for reverberant, plain in zip(one.targets, two.targets, strict=True):
            candidates = {}
            for delay in (100, 110, 120, 200, 210, 220):
                expected = plain.astype(np.float64)
                expected[delay:] += 0.5 * plain[:-delay]
                scale = np.sqrt(np.mean(plain.astype(np.float64) ** 2) / np.mean(expected**2))
                candidates[delay] = np.abs(reverberant - scale * expected).max()
            best = min(candidates, key=lambda each: candidates[each])
            assert candidates[best] < 1e-4
            delays.add(best)
        assert len(delays) == 3  # each in a place of its own
        assert len({delay // 100 for delay in delays}) == 1


def test_shards_and_lists_give_the_same(source: Path, tmp_path: Path) -> None:
    utterances = read_sources(source)
    write_utterance_list(tmp_path / "raw.list", utterances)
    write_shards(utterances, tmp_path / "shards", per_shard=4)
    one, two, three = (
        Mixtures(read_voices(path), settings(), 0)[4]
        for path in (source, tmp_path / "raw.list", tmp_path / "shards" / "shard.list")
    )
    assert same(one, two)
    assert same(one, three)


def test_who_cannot_be_enrolled(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    voices = [each for each in read_voices(source) if each.speaker != "s4" or each.key == "s4-0"]
    made = Mixtures(voices, settings(speakers=(3, 3)), 0)
    assert "1 speakers with one utterance" in caplog.text
    assert made.speakers == ["s0", "s1", "s2", "s3"]
    assert all("s4" not in made[index].speakers for index in range(20))
    heard_too = Mixtures(voices, settings(speakers=(4, 4), targets=2), 0)
    assert all("s4" not in heard_too[index].speakers for index in range(20))
    with pytest.raises(DataError, match="4 speakers with two utterances"):
        Mixtures(voices, settings(speakers=(5, 5)), 0)
    with pytest.raises(DataError, match="too few"):
        Mixtures(voices, settings(speakers=(3, 3), absent_share=0.1), 0)


@pytest.mark.parametrize(
    "values",
    [
        {"speakers": (3, 2)},
        {"targets": 3},
        {"sir": (5.0, -5.0)},
        {"overlap": (0.0, 1.5)},
        {"absent_share": -0.1},
        {"speeds": (1.0, 1.0)},
        {"speeds": ()},
        {"curriculum": 10},
        {"first_sir": (0.0, 1.0)},
        {"first_same_gender_share": 0.0, "curriculum": 5},
        {"enrolment_seconds": (0.0, 1.0)},
        {"seconds": 0.0},
    ],
)
def test_impossible_settings(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        settings(**values)


def test_real_voices(real_data: Path) -> None:
    voices = [
        Utterance(path.stem, path.stem.partition("-")[0], str(path))
        for path in sorted((real_data / "librispeech-mini" / "train-clean-100").rglob("*.flac"))
    ]
    genders = read_genders(real_data / "librispeech-mini" / "SPEAKERS.TXT")
    asked = MixtureSettings(8000, 3.0, (2, 3), same_gender_share=0.5, sparse_share=0.3, speeds=(1.0, 0.9, 1.1))
    made = Mixtures(voices, asked, 0, genders=genders)
    for index in range(4):
        mixture = made[index]
        np.testing.assert_allclose(mixture.mixture, mixture.targets.sum(axis=0), atol=1e-6)
        assert all(2 * 8000 < len(each) <= 6 * 8000 for each in mixture.enrolments)


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "set"
    write_drawn(read_sources(source), folder, DrawSettings((2, 3), overlap=(0.5, 1.0)), 6, 0, rate=RATE)
    return folder


def test_crops_of_prepared_mixtures_are_aligned(prepared: Path) -> None:
    made = PreparedMixtures(prepared, settings(seconds=1.0), 3)
    assert len(made) == 6
    for index in range(18):
        mixture = made[index]
        np.testing.assert_allclose(mixture.mixture, mixture.targets.sum(axis=0), atol=4 / 32768)
        assert mixture.mixture.shape == (RATE,)
        for name, target, enrolment, spans in zip(
            mixture.speakers, mixture.targets, mixture.enrolments, mixture.activity, strict=True
        ):
            assert heard(enrolment)[0] == int(name[1])
            active = np.zeros(RATE, dtype=bool)
            for first, last in spans:
                active[first:last] = True
            assert not (np.abs(target[~active]) > 1e-3).any()
    assert {made[index].key for index in range(6, 12)} == {f"mix{number:06d}" for number in range(6)}
    assert same(copy.deepcopy(made)[7], made[7])


def test_other_enrolments_of_prepared_mixtures(prepared: Path, source: Path) -> None:
    made = PreparedMixtures(prepared, settings(), 3, voices=read_voices(source))
    found: dict[tuple[str, str], set[int]] = {}
    for index in range(24):
        mixture = made[index]
        for name, enrolment in zip(mixture.speakers, mixture.enrolments, strict=True):
            speaker, number = heard(enrolment)
            assert f"s{speaker}-{number}" not in next(e for e in made.listed if e.key == mixture.key).utterances
            found.setdefault((mixture.key, name), set()).add(number)
    assert max(map(len, found.values())) == EACH - 1
    with pytest.raises(DataError, match="no recording to enrol with"):
        PreparedMixtures(prepared, settings(), 3, voices=[each for each in read_voices(source) if each.speaker != "s0"])


def test_a_target_without_reference_is_absent(prepared: Path, tmp_path: Path) -> None:
    for name in ("wav.scp", "ref.scp", "enroll.scp", "utt2spk", "rttm", "reco2dur"):
        (tmp_path / name).write_text((prepared / name).read_text())
    lines = (prepared / "ref.scp").read_text().splitlines()
    (tmp_path / "ref.scp").write_text("\n".join(lines[1:]) + "\n")
    made = PreparedMixtures(tmp_path, settings(), 0)
    named = lines[0].split()[0]
    mixture = next(each for each in map(made.__getitem__, range(len(made))) if named.startswith(f"{each.key}-"))
    place = [f"{mixture.key}-{name}" for name in mixture.speakers].index(named)
    assert not mixture.present[place]
    assert not mixture.targets[place].any()
    assert mixture.present.sum() == len(mixture.speakers) - 1


def test_prepared_mixtures_that_do_not_fit(prepared: Path, tmp_path: Path) -> None:
    for name in ("wav.scp", "ref.scp", "enroll.scp", "utt2spk", "rttm", "reco2dur"):
        (tmp_path / name).write_text((prepared / name).read_text())
    key, path = (prepared / "ref.scp").read_text().splitlines()[0].split()
    made = PreparedMixtures(prepared, settings(), 0)
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(RATE, dtype=np.float32), RATE)
    (tmp_path / "ref.scp").write_text((prepared / "ref.scp").read_text().replace(path, str(short), 1))
    with pytest.raises(DataError, match="has 8000 samples"):
        [PreparedMixtures(tmp_path, settings(), 0)[index] for index in range(len(made))]
    short.unlink()
    with pytest.raises(DataError, match="names 1 files that are not there"):
        PreparedMixtures(tmp_path, settings(), 0)
    (tmp_path / "ref.scp").write_text("")
    (tmp_path / "enroll.scp").write_text(f"{key} {path}\n")
    (tmp_path / "utt2spk").write_text(f"{key} someone\n")
    with pytest.raises(DataError, match="is no target of a mixture"):
        PreparedMixtures(tmp_path, settings(), 0)

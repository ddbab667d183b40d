"""Score normalisation against the definitions, in a loop over trials."""

from __future__ import annotations

import json
import math
import statistics
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from speakerkit.data.ark import Embeddings, write_embeddings
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification import normalisation
from speakerkit.verification.cosine import Sides, cosine_sides, embedding_mean
from speakerkit.verification.normalisation import (
    METHODS,
    Cohort,
    cohort_overlap,
    cohort_statistics,
    make_cohort,
    normalise_cosine,
)
from speakerkit.verification.trials import Trials, read_scores, write_trials
from tests.command import speakerkit

DIM = 16


def make(prefix: str, count: int, seed: int) -> Embeddings:
    rng = np.random.default_rng(seed)
    vectors = 0.5 + rng.normal(size=(count, DIM)) * rng.uniform(0.1, 10, (count, 1))
    return Embeddings([f"{prefix}{number}" for number in range(count)], vectors.astype(np.float32))


def make_trials(keys: Sequence[str], count: int = 120, seed: int = 0) -> Trials:
    rng = np.random.default_rng(seed)
    enrol, test = rng.choice(keys, count), rng.choice(keys, count)
    return Trials.from_pairs([str(key) for key in enrol], [str(key) for key in test])


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = math.fsum(x * y for x, y in zip(one, other, strict=True))
    return product / math.sqrt(math.fsum(x * x for x in one) * math.fsum(y * y for y in other))


def by_definition(
    enrol: Mapping[str, Sequence[float]],
    test: Mapping[str, Sequence[float]],
    pairs: Sequence[tuple[str, str]],
    cohort: Sequence[Sequence[float]],
    method: str,
    top: int,
) -> list[float]:
    """The formulas of Matejka et al. (2017), trial by trial and member by member."""

    def deviation(score: float, own: Sequence[float], chooser: Sequence[float]) -> float:
        nearest = sorted(cohort, key=lambda member: cosine(chooser, member), reverse=True)[:top]
        scores = [cosine(own, member) for member in nearest]
        return (score - statistics.fmean(scores)) / statistics.pstdev(scores)

    normalised = []
    for name, key in pairs:
        e, t = enrol[name], test[key]
        s = cosine(e, t)
        z, t_norm = deviation(s, e, t if method == "as-norm2" else e), deviation(s, t, e if method == "as-norm2" else t)
        normalised.append({"z-norm": z, "t-norm": t_norm}.get(method, (z + t_norm) / 2))
    return normalised


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at_once", [1, 100, 1 << 21])
def test_equals_the_definition(method: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(normalisation, "GATHERED_AT_ONCE", at_once)
    embeddings, impostors = make("u", 20, 0), make("c", 30, 1)
    trials = make_trials(embeddings.keys, 60)
    mean = embedding_mean(impostors)
    sides = cosine_sides(embeddings, trials.enrol_ids, trials.test_ids, mean=mean)
    top = 7 if method.startswith("as") else None
    ours = normalise_cosine(sides, trials, make_cohort(impostors, mean=mean), method, top)
    centred = {key: (embeddings[key].astype(float) - mean).tolist() for key in embeddings.keys}
    members = (impostors.vectors.astype(float) - mean).tolist()
    expected = by_definition(centred, centred, list(trials.pairs()), members, method, top or len(members))
    np.testing.assert_allclose(ours.scores, expected, rtol=0, atol=1e-10)
    assert ours.trials is trials


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("average", ["embeddings", "scores"])
def test_with_two_sides_and_several_recordings(method: str, average: str) -> None:
    """Scores that are means over recordings are normalised by cohort scores that are such means."""
    sessions, tests, impostors = make("s", 12, 2), make("u", 10, 3), make("c", 25, 4)
    enrol_map = {f"m{row}": [f"s{3 * row}", f"s{3 * row + 1}", f"s{3 * row + 2}"] for row in range(4)}
    pairs = [(model, key) for model in enrol_map for key in tests.keys]
    trials = Trials.from_pairs(*zip(*pairs, strict=True))
    top = 6 if method.startswith("as") else None
    sides = cosine_sides(
        tests, trials.enrol_ids, trials.test_ids, enrol_embeddings=sessions, enrol_map=enrol_map, average=average
    )
    ours = normalise_cosine(sides, trials, make_cohort(impostors), method, top).scores

    def unit(embeddings: Embeddings, key: str) -> np.ndarray:
        return embeddings[key].astype(float) / math.sqrt(math.fsum(embeddings[key].astype(float) ** 2))

    members = np.array([unit(impostors, key) for key in impostors.keys])
    for (model, key), score in zip(pairs, ours, strict=True):
        e = np.mean([unit(sessions, session) for session in enrol_map[model]], axis=0)
        if average == "embeddings":
            e /= np.linalg.norm(e)
        t = unit(tests, key)
        e_scores, t_scores = members @ e, members @ t
        chosen_by_e, chosen_by_t = np.argsort(-e_scores)[: top or 25], np.argsort(-t_scores)[: top or 25]
        if method == "as-norm2":
            chosen_by_e, chosen_by_t = chosen_by_t, chosen_by_e
        z = (e @ t - np.mean(e_scores[chosen_by_e])) / np.std(e_scores[chosen_by_e])
        t_norm = (e @ t - np.mean(t_scores[chosen_by_t])) / np.std(t_scores[chosen_by_t])
        assert score == pytest.approx({"z-norm": z, "t-norm": t_norm}.get(method, (z + t_norm) / 2), abs=1e-10)


def small() -> tuple[Sides, Trials, Cohort]:
    embeddings, impostors = make("u", 20, 0), make("c", 30, 1)
    trials = make_trials(embeddings.keys)
    return cosine_sides(embeddings, trials.enrol_ids, trials.test_ids), trials, make_cohort(impostors)


def test_the_methods_meet_where_they_must() -> None:
    sides, trials, cohort = small()
    s_norm = normalise_cosine(sides, trials, cohort, "s-norm").scores
    for method in ("as-norm1", "as-norm2"):
        np.testing.assert_allclose(normalise_cosine(sides, trials, cohort, method, 30).scores, s_norm, atol=1e-12)
    z, t = (normalise_cosine(sides, trials, cohort, method).scores for method in ("z-norm", "t-norm"))
    np.testing.assert_allclose((z + t) / 2, s_norm, atol=1e-12)
    one, two = (normalise_cosine(sides, trials, cohort, method, 5).scores for method in ("as-norm1", "as-norm2"))
    assert np.abs(one - two).max() > 0.1


@pytest.mark.parametrize("method", ["as-norm1", "as-norm2", "s-norm"])
def test_sides_may_be_swapped(method: str) -> None:
    sides, trials, cohort = small()
    swapped = Sides(sides.test_ids, sides.enrol_ids, sides.vectors, sides.test, sides.enrol)
    back = Trials(trials.test_ids, trials.enrol_ids, trials.test, trials.enrol)
    top = None if method == "s-norm" else 5
    np.testing.assert_allclose(
        normalise_cosine(swapped, back, cohort, method, top).scores,
        normalise_cosine(sides, trials, cohort, method, top).scores,
        atol=1e-12,
    )


def test_statistics_of_each_trial() -> None:
    sides, trials, cohort = small()
    found = cohort_statistics(sides, trials, cohort, 4)
    for number, (enrol, test) in enumerate(zip(trials.enrol, trials.test, strict=True)):
        for row, mean, std in (
            (sides.enrol[enrol], found.enrol_means[number], found.enrol_stds[number]),
            (sides.test[test], found.test_means[number], found.test_stds[number]),
        ):
            best = sorted(cohort.vectors @ sides.vectors[row])[-4:]
            assert mean == pytest.approx(statistics.fmean(best), abs=1e-12)
            assert std == pytest.approx(statistics.pstdev(best), abs=1e-12)


def test_cohort_of_speaker_means() -> None:
    impostors = make("c", 12, 5)
    speakers = {key: f"s{number % 4}" for number, key in enumerate(impostors.keys)} | {"another": "s9"}
    cohort = make_cohort(impostors, speakers)
    assert cohort.ids == ("s0", "s1", "s2", "s3")
    for number, vector in enumerate(cohort.vectors):
        own = impostors.vectors[number::4].astype(float)
        mean = (own / np.sqrt((own**2).sum(axis=1, keepdims=True))).mean(axis=0)
        np.testing.assert_allclose(vector, mean / math.sqrt(math.fsum(mean**2)), atol=1e-14)
    del speakers["c3"]
    with pytest.raises(DataError, match=r"no speaker for 'c3' \(1 of 12 embeddings\)"):
        make_cohort(impostors, speakers)


def test_overlap_is_found_by_key_and_by_speaker() -> None:
    assert cohort_overlap(["a", "b"], ["c", "d"]) == []
    assert cohort_overlap(["a", "b", "d"], ["d", "c", "b"]) == ["b", "d"]
    assert cohort_overlap(["a", "b"], ["c", "d"], {"a": "s1", "b": "s2"}, {"c": "s2", "d": "s3"}) == ["s2"]
    assert cohort_overlap(["s2", "s4"], ["c", "d"], None, {"c": "s2"}) == ["s2"]  # a cohort of speakers
    assert cohort_overlap(["a"], ["s1"], {"a": "s1"}) == ["s1"]  # an enrolment that bears the speaker's name
    assert cohort_overlap(["a"], ["c"], {"a": "s1", "x": "s2"}, {"c": "s2", "y": "s1"}) == []


def test_what_cannot_be_normalised() -> None:
    sides, trials, cohort = small()
    with pytest.raises(DataError, match="cohort of 30, of which the top 31"):
        normalise_cosine(sides, trials, cohort, top=31)
    with pytest.raises(DataError, match="top 300"):
        normalise_cosine(sides, trials, cohort)
    for top in (1, 0, -3):
        with pytest.raises(ConfigError, match="two or more"):
            normalise_cosine(sides, trials, cohort, top=top)
    with pytest.raises(ConfigError, match="z-norm takes the whole cohort"):
        normalise_cosine(sides, trials, cohort, "z-norm", 5)
    with pytest.raises(ConfigError, match="'zt' is not known"):
        normalise_cosine(sides, trials, cohort, "zt")
    narrow = Cohort(cohort.ids, cohort.vectors[:, 1:])
    with pytest.raises(DataError, match=r"15 values a row.*16"):
        normalise_cosine(sides, trials, narrow, top=5)


@pytest.mark.parametrize("method", METHODS)
def test_a_cohort_without_spread_is_named(method: str) -> None:
    sides, trials, _ = small()
    one = make("c", 1, 1).vectors
    copies = Embeddings(["c0", "c1", "c2"], np.concatenate([one, one, 3 * one]))  # 3 x rounds in float32
    side = trials.test_ids if method == "t-norm" else trials.enrol_ids
    with pytest.raises(DataError, match=rf"scores of '{side[0]}' are all equal \(120 of 120 trials\)"):
        normalise_cosine(sides, trials, make_cohort(copies), method, 3 if method.startswith("as") else None)


@pytest.mark.parametrize("crossed", [False, True])
def test_memory_does_not_grow_with_trials_times_cohort(crossed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "SCORES_AT_ONCE", 1 << 17)  # 1 MB
    embeddings, impostors = make("u", 800, 0), make("c", 1000, 1)
    trials = make_trials(embeddings.keys, 50_000)  # times the top 100: 40 MB a side; of all ids: 6.4 MB
    sides, cohort = cosine_sides(embeddings, trials.enrol_ids, trials.test_ids), make_cohort(impostors)
    tracemalloc.start()
    try:
        cohort_statistics(sides, trials, cohort, 100, crossed=crossed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (10e6 if crossed else 7e6)


def write_all(folder: Path) -> tuple[Embeddings, Embeddings, Trials]:
    embeddings, impostors = make("u", 20, 0), make("c", 30, 1)
    trials = make_trials(embeddings.keys)
    write_embeddings(folder / "x.npz", embeddings)
    write_embeddings(folder / "cohort.scp", impostors)
    write_trials(folder / "trials", trials)
    (folder / "utt2spk").write_text("".join(f"{key} s{number // 3}\n" for number, key in enumerate(impostors.keys)))
    return embeddings, impostors, trials


def test_command(tmp_path: Path) -> None:
    embeddings, impostors, trials = write_all(tmp_path)
    command = ("score", "norm", tmp_path / "x.npz", tmp_path / "trials", tmp_path / "scores")
    cohort = ("--cohort", tmp_path / "cohort.scp")
    speakers = ("--cohort-utt2spk", tmp_path / "utt2spk")
    mean = embedding_mean(impostors)
    table = {key: f"s{number // 3}" for number, key in enumerate(impostors.keys)}
    for method, top in (("as-norm1", 5), ("as-norm2", 5), ("s-norm", None)):
        options = ("--method", method, *(() if top is None else ("--top", top)), "--mean", tmp_path / "cohort.scp")
        ran = speakerkit(*command, *cohort, *speakers, *options)
        assert ran.code == 0, ran
        assert ran.out == ""
        assert "WARNING" not in ran.err
        sides = cosine_sides(embeddings, trials.enrol_ids, trials.test_ids, mean=mean)
        expected = normalise_cosine(sides, trials, make_cohort(impostors, table, mean), method, top)
        np.testing.assert_allclose(read_scores(tmp_path / "scores").scores, expected.scores, rtol=0, atol=1e-12)
    (tmp_path / "spk2utt").write_text(
        "".join(f"{key} {key} u0\n" for key in trials.enrol_ids if key != "u0") + "u0 u0\n"
    )
    ran = speakerkit(*command, *cohort, "--enrol-map", tmp_path / "spk2utt", "--top", 5)
    assert ran.code == 0, ran
    assert not np.allclose(read_scores(tmp_path / "scores").scores, expected.scores)


def test_command_warns_of_impostors_that_are_none(tmp_path: Path) -> None:
    write_all(tmp_path)
    command = ("score", "norm", tmp_path / "x.npz", tmp_path / "trials", tmp_path / "scores", "--top", 5)
    cohort = ("--cohort", tmp_path / "cohort.scp", "--cohort-utt2spk", tmp_path / "utt2spk")
    (tmp_path / "mine").write_text("".join(f"u{number} s{number}\n" for number in range(5, 20)))
    ran = speakerkit(*command, *cohort, "--utt2spk", tmp_path / "mine")
    assert ran.code == 0
    assert "WARNING" in ran.err
    assert "5 names of the trials are in the cohort, 's5' first" in ran.err
    ran = speakerkit(*command, "--cohort", tmp_path / "x.npz")
    assert ran.code == 0
    assert "20 names of the trials are in the cohort, 'u0' first" in ran.err


def test_command_refuses(tmp_path: Path) -> None:
    write_all(tmp_path)
    command = ("score", "norm", tmp_path / "x.npz", tmp_path / "trials", tmp_path / "scores")
    cohort = ("--cohort", tmp_path / "cohort.scp")
    (tmp_path / "short").write_text("c0 s0\n")
    for options, fault in (
        ((), "cohort.scp: is a cohort of 30, of which the top 300"),
        (("--top", 31), "top 31"),
        (("--top", 1), "two or more"),
        (("--method", "t-norm", "--top", 5), "takes the whole cohort"),
        (("--method", "snorm"), "'snorm' is not known"),
        (("--cohort-utt2spk", tmp_path / "short"), "no speaker for 'c1'"),
        (("--utt2spk", tmp_path / "none"), "no such file"),
    ):
        ran = speakerkit(*command, *cohort, *options)
        assert ran.code == 2, ran
        assert len(ran.errors) == 1
        assert fault in ran.errors[0]
    for name, digest in (("x", "1"), ("cohort", "2")):
        (tmp_path / f"{name}.model.json").write_text(json.dumps({"sha256": digest}))
    ran = speakerkit(*command, *cohort, "--top", 5)
    assert ran.code == 2
    assert "cohort.scp: was made by another model than" in ran.errors[0]
    assert not (tmp_path / "scores").exists()

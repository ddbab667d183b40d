"""Cosine scores against a plain loop in float64."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from speakerkit.cli.score import app
from speakerkit.data.ark import Embeddings, write_embeddings
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.cosine import (
    cosine_sides,
    embedding_mean,
    magnitudes,
    mean_directions,
    read_enrol_map,
    read_mean,
    require_one_model,
    score_all,
    score_cosine,
    score_trials,
)
from speakerkit.verification.trials import Trials, read_scores, write_trials
from tests.command import speakerkit


def make(count: int = 40, dim: int = 24, trials: int = 300, seed: int = 0) -> tuple[Embeddings, Trials]:
    rng = np.random.default_rng(seed)
    vectors = (3 + rng.normal(size=(count, dim)) * rng.uniform(0.1, 10, (count, 1))).astype(np.float32)
    keys = [f"u{number}" for number in range(count)]
    pairs = rng.integers(count, size=(trials, 2))
    return Embeddings(keys, vectors), Trials.from_pairs(
        [keys[row] for row in pairs[:, 0]], [keys[row] for row in pairs[:, 1]], rng.random(trials) < 0.5
    )


def loop(embeddings: Embeddings, trials: Trials, mean: np.ndarray, enrol: Embeddings) -> list[float]:
    scores = []
    for first, second in trials.pairs():
        a = [float(value) - centre for value, centre in zip(enrol[first], mean, strict=True)]
        b = [float(value) - centre for value, centre in zip(embeddings[second], mean, strict=True)]
        product = math.fsum(x * y for x, y in zip(a, b, strict=True))
        scores.append(product / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b)))
    return scores


@pytest.mark.parametrize("centred", [False, True])
def test_equals_the_loop(centred: bool) -> None:
    embeddings, trials = make()
    other = make(seed=1)[0]
    mean = embedding_mean(embeddings)
    for enrol in (None, other):
        ours = score_cosine(embeddings, trials, mean=mean if centred else None, enrol_embeddings=enrol)
        expected = loop(embeddings, trials, mean if centred else np.zeros(24), enrol or embeddings)
        np.testing.assert_allclose(ours.scores, expected, rtol=0, atol=1e-12)
        assert ours.trials is trials


def test_block_size_and_order_do_not_show() -> None:
    embeddings, trials = make()
    whole = score_cosine(embeddings, trials).scores
    sides = cosine_sides(embeddings, trials.enrol_ids, trials.test_ids)
    for block in (1, 13, 300, 4096):
        np.testing.assert_array_equal(score_trials(sides, trials, block).scores, whole)
    swapped = Trials(trials.test_ids, trials.enrol_ids, trials.test, trials.enrol)
    np.testing.assert_array_equal(score_cosine(embeddings, swapped).scores, whole)


def test_scores_stay_within_one() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(2000, 3)).astype(np.float32)
    keys = [f"u{row}" for row in range(2000)]
    both = Embeddings(keys, vectors)
    opposite = Embeddings(keys, -3 * vectors)
    trials = Trials.from_pairs(keys, keys)
    same, against = score_cosine(both, trials).scores, score_cosine(both, trials, enrol_embeddings=opposite).scores
    assert same.max() <= 1
    assert against.min() >= -1
    np.testing.assert_allclose(same, 1, atol=1e-15)
    np.testing.assert_allclose(against, -1, atol=1e-7)  # times 3 rounds in float32


def test_scale_does_not_matter_even_near_the_limits_of_float32() -> None:
    embeddings, trials = make()
    expected = score_cosine(embeddings, trials).scores
    for scale in (2.0**-120, 2.0**110):
        scaled = Embeddings(embeddings.keys, embeddings.vectors * np.float32(scale))
        np.testing.assert_allclose(score_cosine(scaled, trials).scores, expected, atol=1e-6)


def test_missing_keys_are_named_and_counted() -> None:
    embeddings, _ = make()
    trials = Trials.from_pairs(["u1", "x", "y", "x"], ["u2"] * 4)
    with pytest.raises(DataError, match=r"'x' \(2 of 4"):
        score_cosine(embeddings, trials)


def test_embeddings_without_direction_are_named() -> None:
    vectors = np.array([[1, 2], [0, 0], [3, 3]], np.float32)
    embeddings = Embeddings(["a", "b", "c"], vectors)
    with pytest.raises(DataError, match=r"'b' has no direction.*1 of 3"):
        score_cosine(embeddings, Trials.from_pairs(["a", "b"], ["c", "c"]))
    with pytest.raises(DataError, match="'b' has no direction"):
        score_cosine(embeddings, Trials.from_pairs(["a"], ["b"]), mean=[0.5, 0.5])
    assert np.isfinite(score_cosine(embeddings, Trials.from_pairs(["a"], ["c"])).scores).all()
    same = Embeddings(["a", "b", "c"], np.full((3, 2), 0.1, np.float32))
    with pytest.raises(DataError, match="'a' has no direction"):
        score_cosine(same, Trials.from_pairs(["a"], ["b"]), mean=embedding_mean(same))


def test_dimensions_must_agree() -> None:
    embeddings, trials = make()
    with pytest.raises(DataError, match="one model"):
        score_cosine(embeddings, trials, enrol_embeddings=make(dim=23)[0])
    for mean in (np.zeros(23), np.full(24, np.nan), np.zeros((1, 24))):
        with pytest.raises(DataError, match="mean"):
            score_cosine(embeddings, trials, mean=mean)


ENROL_MAP = {"m1": ["u1"], "m2": ["u2", "u3", "u5"], "m3": ["u8", "u3"]}


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(math.fsum(vector * vector))


@pytest.mark.parametrize("centred", [False, True])
def test_enrolment_of_several_recordings(centred: bool) -> None:
    embeddings, _ = make()
    sessions, mean = make(seed=1)[0], embedding_mean(embeddings) * centred
    trials = Trials.from_pairs(["m2", "m1", "m3", "m2"], ["u1", "u7", "u2", "u9"])  # no labels
    by_embeddings, by_scores = [], []
    for model, test in trials.pairs():
        enrolled = [unit(sessions[key].astype(float) - mean) for key in ENROL_MAP[model]]
        against = unit(embeddings[test].astype(float) - mean)
        by_embeddings.append(unit(sum(enrolled) / len(enrolled)) @ against)
        by_scores.append(sum(session @ against for session in enrolled) / len(enrolled))
    for average, expected in (("embeddings", by_embeddings), ("scores", by_scores)):
        scores = score_cosine(
            embeddings, trials, mean=mean, enrol_embeddings=sessions, enrol_map=ENROL_MAP, average=average
        )
        np.testing.assert_allclose(scores.scores, expected, rtol=0, atol=1e-12)
    assert not np.allclose(by_embeddings, by_scores, atol=1e-3)


def test_enrolment_of_one_recording_is_that_recording() -> None:
    embeddings, trials = make()
    alone = {key: [key] for key in trials.enrol_ids}
    expected = score_cosine(embeddings, trials).scores
    for average in ("embeddings", "scores"):
        ours = score_cosine(embeddings, trials, enrol_map=alone, average=average).scores
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-14)


def test_enrolments_that_cannot_be_made() -> None:
    embeddings = Embeddings(["a", "b", "c"], np.array([[1, 1], [-2, -2], [3, 1]], np.float32))
    trials = Trials.from_pairs(["m"], ["c"])
    opposite = {"m": ["a", "b"]}
    with pytest.raises(DataError, match="'m' cancel out"):
        score_cosine(embeddings, trials, enrol_map=opposite)
    assert score_cosine(embeddings, trials, enrol_map=opposite, average="scores").scores == pytest.approx(0, abs=1e-7)
    for missing in ({"n": ["a"]}, {"m": []}):
        with pytest.raises(DataError, match=r"no recordings for 'm' \(1 of 1"):
            score_cosine(embeddings, trials, enrol_map=missing)
    with pytest.raises(DataError, match=r"'x' \(2 of 3"):
        score_cosine(embeddings, trials, enrol_map={"m": ["a", "x", "y"]})
    with pytest.raises(ConfigError, match="'median' is not known; choose one of embeddings scores"):
        score_cosine(embeddings, trials, enrol_map=opposite, average="median")


def test_enrol_map_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "spk2utt"
    path.write_text("m1 a  b\nm2\tc\n")
    assert read_enrol_map(path) == {"m1": ["a", "b"], "m2": ["c"]}
    for text, fault in (("m1 a a\n", "'m1' names 'a' twice"), ("m1\n", "one column"), ("m a\nm b\n", "comes twice")):
        path.write_text(text)
        with pytest.raises(DataError, match=fault):
            read_enrol_map(path)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
def test_mean_directions_in_blocks(block: int) -> None:
    embeddings, _ = make(count=9, dim=5)
    groups = {"x": ["u3", "u1", "u8", "u0"], "y": ["u2"], "z": ["u4", "u3", "u5"]}
    expected = [np.mean([unit(embeddings[key].astype(float)) for key in keys], axis=0) for keys in groups.values()]
    np.testing.assert_allclose(mean_directions(embeddings, groups, block=block), expected, atol=1e-15)


def test_magnitudes() -> None:
    embeddings = Embeddings(["a", "b"], np.array([[3, 4], [6, 8]], np.float32))
    assert magnitudes(embeddings, ["b", "a"]).tolist() == [10, 5]
    assert magnitudes(embeddings, ["a"], [3, 0]).tolist() == [4]


@pytest.mark.parametrize("at_once", [1, 17, 40, 100, 1 << 20])
def test_everything_against_everything(at_once: int) -> None:
    embeddings, _ = make()
    keys = embeddings.keys
    blocks = list(score_all(cosine_sides(embeddings, keys, keys), at_once))
    pairs = [pair for scores in blocks for pair in scores.trials.pairs()]
    assert pairs == [(one, other) for row, one in enumerate(keys) for other in keys[row + 1 :]]
    expected = score_cosine(embeddings, Trials.from_pairs(*zip(*pairs, strict=True))).scores
    np.testing.assert_allclose(np.concatenate([scores.scores for scores in blocks]), expected, rtol=0, atol=1e-14)

    sides = cosine_sides(embeddings, list(ENROL_MAP), keys, enrol_map=ENROL_MAP)
    blocks = list(score_all(sides, at_once))
    pairs = [pair for scores in blocks for pair in scores.trials.pairs()]
    assert pairs == [(model, key) for model in ENROL_MAP for key in keys]
    assert sides.pairs == len(pairs)
    trials = Trials.from_pairs(*zip(*pairs, strict=True))
    expected = score_cosine(embeddings, trials, enrol_map=ENROL_MAP).scores
    np.testing.assert_allclose(np.concatenate([scores.scores for scores in blocks]), expected, rtol=0, atol=1e-14)


def test_one_embedding_has_no_pairs() -> None:
    embeddings, _ = make(count=1)
    with pytest.raises(DataError, match="u0: is the only embedding"):
        next(score_all(cosine_sides(embeddings, ["u0"], ["u0"])))


def test_memory_grows_neither_with_trials_times_dimension_nor_with_pairs() -> None:
    embeddings, trials = make(count=1500, dim=128, trials=100_000)
    sides = cosine_sides(embeddings, trials.enrol_ids, trials.test_ids)  # of the trials: 100 000 x 128 x 8 = 102 MB
    everything = cosine_sides(embeddings, embeddings.keys, embeddings.keys)
    tracemalloc.start()
    try:
        score_trials(sides, trials)
        assert tracemalloc.get_traced_memory()[1] < 6e6
        tracemalloc.reset_peak()
        count = sum(len(scores) for scores in score_all(everything, 1 << 14))  # 1 124 250 pairs, 27 MB of them
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert count == everything.pairs == 1500 * 1499 // 2


def test_mean_on_disk(tmp_path: Path) -> None:
    embeddings, _ = make()
    mean = embedding_mean(embeddings)
    np.testing.assert_allclose(mean, np.array(embeddings.vectors.tolist()).mean(axis=0), atol=1e-12)
    np.save(tmp_path / "mean.npy", mean)
    np.testing.assert_array_equal(read_mean(tmp_path / "mean.npy"), mean)
    for format in ("npy", "scp"):
        np.testing.assert_array_equal(read_mean(write_embeddings(tmp_path / "x", embeddings, format)), mean)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    with pytest.raises(DataError, match="real numbers"):
        read_mean(tmp_path / "text.npy")


def test_models_must_agree(tmp_path: Path) -> None:
    embeddings, trials = make()
    write_trials(tmp_path / "trials", trials)
    for name, digest in (("x", "1"), ("same", "1"), ("y", "2"), ("untold", "")):
        write_embeddings(tmp_path / f"{name}.npz", embeddings)
        if digest:
            (tmp_path / f"{name}.model.json").write_text(json.dumps({"sha256": digest}))
    for option in ("--mean", "--enrol"):
        for other, code in (("same", 0), ("untold", 0), ("y", 2)):
            ran = speakerkit(
                *("score", "cosine", tmp_path / "x.npz", tmp_path / "trials", tmp_path / "scores"),
                *(option, tmp_path / f"{other}.npz"),
            )
            assert ran.code == code, ran
        assert re.search(r"y\.npz: was made by another model than .*x\.npz", ran.errors[0])
    for text in ("[", "[]", "{}", '{"sha256": 1}'):
        (tmp_path / "y.model.json").write_text(text)
        with pytest.raises(DataError, match=r"y\.model\.json: does not tell"):
            require_one_model(tmp_path / "x.npz", tmp_path / "y.npz")


def test_command(tmp_path: Path) -> None:
    embeddings, trials = make()
    scp = write_embeddings(tmp_path / "x.scp", embeddings)
    np.save(tmp_path / "mean.npy", embedding_mean(embeddings))
    write_trials(tmp_path / "trials", trials)
    expected = score_cosine(embeddings, trials, mean=embedding_mean(embeddings)).scores
    for mean in (tmp_path / "mean.npy", scp):
        arguments = ["cosine", scp, tmp_path / "trials", tmp_path / "out" / "scores", "--mean", mean, "--enrol", scp]
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0
        assert result.stdout == ""
        np.testing.assert_array_equal(read_scores(tmp_path / "out" / "scores").scores, expected)


def test_command_of_all_pairs(tmp_path: Path) -> None:
    embeddings, _ = make(count=12)
    scp = write_embeddings(tmp_path / "x.scp", embeddings)
    (tmp_path / "spk2utt").write_text("".join(f"{model} {' '.join(keys)}\n" for model, keys in ENROL_MAP.items()))
    out = tmp_path / "scores"
    ran = speakerkit("score", "cosine", scp, "all-pairs", out)
    assert ran.code == 0, ran
    scores = read_scores(out)
    assert list(scores.trials.pairs())[:2] == [("u0", "u1"), ("u0", "u10")]  # in the order of the keys
    assert len(scores) == 66
    np.testing.assert_allclose(scores.scores, score_cosine(embeddings, scores.trials).scores, rtol=0, atol=1e-14)

    options = ("--enrol-map", tmp_path / "spk2utt", "--average", "scores")
    assert speakerkit("score", "cosine", scp, "all-pairs", out, *options).code == 0
    scores = read_scores(out)
    assert len(scores) == 3 * 12
    expected = score_cosine(embeddings, scores.trials, enrol_map=ENROL_MAP, average="scores").scores
    np.testing.assert_allclose(scores.scores, expected, rtol=0, atol=1e-14)
    refused = speakerkit("score", "cosine", scp, "all-pairs", tmp_path / "none", *options[:2], "--average", "both")
    assert refused.code == 2
    assert "'both' is not known" in refused.errors[0]
    assert not (tmp_path / "none").exists()

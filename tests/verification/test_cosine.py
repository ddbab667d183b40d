"""Cosine scores against a plain loop in float64."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from speakerkit.cli.score import app
from speakerkit.data.ark import Embeddings, write_embeddings
from speakerkit.errors import DataError
from speakerkit.verification.cosine import embedding_mean, read_mean, require_one_model, score_cosine
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


@pytest.mark.parametrize("block", [1, 7, 300, 4096])
@pytest.mark.parametrize("centred", [False, True])
def test_equals_the_loop(block: int, centred: bool) -> None:
    embeddings, trials = make()
    other = make(seed=1)[0]
    mean = embedding_mean(embeddings)
    for enrol in (None, other):
        ours = score_cosine(embeddings, trials, mean=mean if centred else None, enrol_embeddings=enrol, block=block)
        expected = loop(embeddings, trials, mean if centred else np.zeros(24), enrol or embeddings)
        np.testing.assert_allclose(ours.scores, expected, rtol=0, atol=1e-12)
        assert ours.trials is trials


def test_block_size_and_order_do_not_show() -> None:
    embeddings, trials = make()
    whole = score_cosine(embeddings, trials).scores
    np.testing.assert_array_equal(score_cosine(embeddings, trials, block=13).scores, whole)
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
    with pytest.raises(DataError, match=r"'x' \(2 of 3"):
        score_cosine(embeddings, trials)


def test_embeddings_without_direction_are_named() -> None:
    vectors = np.array([[1, 2], [0, 0], [3, 3]], np.float32)
    embeddings = Embeddings(["a", "b", "c"], vectors)
    with pytest.raises(DataError, match=r"'b' has no direction.*1 of 2"):
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

"""Adaptation of PLDA: the formulas of Kaldi and of the papers, step by step, and less cost after a change of domain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm

from speakerkit.data.ark import Embeddings, read_embeddings, write_embeddings
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.adaptation import adapt_coral, adapt_coral_plus, adapt_kaldi, interpolate
from speakerkit.verification.backend import adapt_backend, train_backend
from speakerkit.verification.backend_file import read_backend
from speakerkit.verification.plda import Plda, train_plda
from speakerkit.verification.speakers import SpeakerStatistics
from tests.command import speakerkit
from tests.verification.gaussian import draw, spd

DIM = 5


@pytest.fixture(scope="module")
def model() -> Plda:
    rng = np.random.default_rng(1)
    return Plda.of(rng.normal(size=DIM), spd(rng, DIM), spd(rng, DIM, 2))


@pytest.fixture(scope="module")
def target() -> np.ndarray:
    """Embeddings of another domain: some directions vary more than the model expects, others less."""
    rng = np.random.default_rng(2)
    return rng.normal(size=(200, DIM)) @ (rng.normal(size=(DIM, DIM)) * [3, 2, 1, 1, 0.2]) + 4


def close(model: Plda, mean: np.ndarray, within: np.ndarray, between: np.ndarray) -> None:
    for ours, expected in ((model.mean, mean), (model.within, within), (model.between, between)):
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-9)


def kaldi_step_by_step(
    model: Plda, rows: np.ndarray, within_scale: float, between_scale: float, mean_diff_scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PldaUnsupervisedAdaptor::UpdatePlda: rotate into the space where the model's total covariance is the identity and
    the data's is diagonal, add what exceeds 1 there, go back."""
    mean = rows.mean(axis=0)
    shift = mean - model.mean
    variance = rows.T @ rows / len(rows) - np.outer(mean, mean) + mean_diff_scale * np.outer(shift, shift)
    to_unit = model.transform / np.sqrt(1 + model.psi)[:, None]
    eigenvalues, rotation = np.linalg.eigh(to_unit @ variance @ to_unit.T)
    within = rotation.T @ np.diag(1 / (1 + model.psi)) @ rotation
    between = rotation.T @ np.diag(model.psi / (1 + model.psi)) @ rotation
    for axis, value in enumerate(eigenvalues):
        if value > 1:
            within[axis, axis] += (value - 1) * within_scale
            between[axis, axis] += (value - 1) * between_scale
    back = np.linalg.inv(rotation.T @ to_unit)
    return mean, back @ within @ back.T, back @ between @ back.T


@pytest.mark.parametrize("scales", [(0.3, 0.7, 1.0), (0.75, 0.25, 0.0), (0.0, 0.0, 1.0)])
def test_kaldi(model: Plda, target: np.ndarray, scales: tuple[float, float, float]) -> None:
    names = ("within_scale", "between_scale", "mean_diff_scale")
    close(
        adapt_kaldi(model, target, **dict(zip(names, scales, strict=True))), *kaldi_step_by_step(model, target, *scales)
    )


def test_kaldi_defaults(model: Plda, target: np.ndarray) -> None:
    close(adapt_kaldi(model, target), *kaldi_step_by_step(model, target, 0.3, 0.7, 1.0))


def test_directions_without_speakers(target: np.ndarray) -> None:
    """psi = 0, where an implementation that inverts psi breaks."""
    rng = np.random.default_rng(1)
    flat = Plda(np.zeros(DIM), rng.normal(size=(DIM, DIM)), np.array([3.0, 1.0, 0.5, 0.0, 0.0]))
    close(adapt_kaldi(flat, target), *kaldi_step_by_step(flat, target, 0.3, 0.7, 1.0))
    nearly = Plda(flat.mean, flat.transform, np.maximum(flat.psi, 1e-7))
    for ours, limit in ((adapt_coral_plus(flat, target), adapt_coral_plus(nearly, target)),):
        np.testing.assert_allclose(ours.between, limit.between, rtol=1e-4, atol=1e-4)


def aligned(model: Plda, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CORAL's covariances: features whitened by the model's total covariance, coloured by the data's."""
    colour = np.linalg.inv(sqrtm(model.within + model.between)) @ sqrtm(np.cov(rows.T, bias=True))
    return colour.T @ model.within @ colour, colour.T @ model.between @ colour


def test_coral(model: Plda, target: np.ndarray) -> None:
    adapted = adapt_coral(model, target)
    close(adapted, target.mean(axis=0), *aligned(model, target))
    np.testing.assert_allclose(adapted.within + adapted.between, np.cov(target.T, bias=True), rtol=1e-8, atol=1e-8)


def coral_plus_step_by_step(old: np.ndarray, new: np.ndarray, scale: float) -> np.ndarray:
    """The paper's algorithm for one of the two covariances: ``B.T old B = I``, ``B.T new B = E``."""
    values, vectors = np.linalg.eigh(old)
    to_unit = vectors @ np.diag(values**-0.5)
    eigenvalues, rotation = np.linalg.eigh(to_unit.T @ new @ to_unit)
    back = np.linalg.inv(to_unit @ rotation)
    return old + scale * back.T @ np.diag(np.maximum(0, eigenvalues - 1)) @ back


@pytest.mark.parametrize("scales", [(0.8, 0.8), (0.2, 1.0)])
def test_coral_plus(model: Plda, target: np.ndarray, scales: tuple[float, float]) -> None:
    within, between = aligned(model, target)
    expected = (
        coral_plus_step_by_step(model.within, within, scales[0]),
        coral_plus_step_by_step(model.between, between, scales[1]),
    )
    close(
        adapt_coral_plus(model, target, within_scale=scales[0], between_scale=scales[1]), target.mean(axis=0), *expected
    )


def test_interpolation(model: Plda) -> None:
    rng = np.random.default_rng(9)
    other = Plda.of(rng.normal(size=DIM), spd(rng, DIM), spd(rng, DIM))
    mixed = interpolate(model, other, within_weight=0.25, between_weight=1.0)
    close(mixed, other.mean, 0.75 * model.within + 0.25 * other.within, other.between)
    close(interpolate(model, other, within_weight=0.0, between_weight=0.0), other.mean, model.within, model.between)


def test_data_of_the_same_domain_change_nothing_but_the_mean(model: Plda) -> None:
    rng = np.random.default_rng(0)
    white = np.linalg.qr(rng.normal(size=(50, DIM)) - 0.0)[0]
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(sqrtm(np.cov(white.T, bias=True)))
    rows = white @ sqrtm(model.within + model.between) + model.mean
    for adapted in (adapt_kaldi(model, rows), adapt_coral(model, rows), adapt_coral_plus(model, rows)):
        close(adapted, model.mean, model.within, model.between)


def llr_cost(model: Plda, rows: np.ndarray, speakers: list[str]) -> float:
    """Cllr in bits, over all pairs of utterances."""
    first, second = np.triu_indices(len(rows), 1)
    projected = model.project(rows, 1, "none")
    scores = model.llr(projected, np.ones(len(rows)), projected, (first, second))
    names = np.array(speakers)
    same = names[first] == names[second]
    return float(np.mean(np.logaddexp(0, -scores[same])) + np.mean(np.logaddexp(0, scores[~same]))) / (2 * np.log(2))


@pytest.fixture(scope="module")
def domains() -> tuple[Plda, tuple[np.ndarray, list[str]], tuple[np.ndarray, list[str]]]:
    """A model of one domain; adaptation and test sets of another with more noise in half of the directions, speakers
    further apart in some, and another mean."""
    rng = np.random.default_rng(6)
    dim = 10
    mean, within, between = rng.normal(size=dim), spd(rng, dim), spd(rng, dim)
    out_of_domain = draw(rng, mean, within, between, np.full(400, 6))
    noise, spread = 0.7 * rng.normal(size=(dim, dim // 2)), 0.7 * rng.normal(size=(dim, 3))
    shifted = (mean + rng.normal(size=dim), within + noise @ noise.T, between + spread @ spread.T)
    adaptation, test = (draw(rng, *shifted, np.full(speakers, 5)) for speakers in (120, 100))
    return train_plda(SpeakerStatistics.of(*out_of_domain)).model, adaptation, test


def test_adaptation_lowers_the_cost_after_a_change_of_domain(
    domains: tuple[Plda, tuple[np.ndarray, list[str]], tuple[np.ndarray, list[str]]],
) -> None:
    model, (rows, speakers), test = domains
    in_domain = train_plda(SpeakerStatistics.of(rows, speakers)).model
    before = llr_cost(model, *test)
    adapted = {
        "kaldi": adapt_kaldi(model, rows, mean_diff_scale=0.0),
        "coral": adapt_coral(model, rows),
        "coral+": adapt_coral_plus(model, rows),
        "interpolate": interpolate(model, in_domain),
    }
    costs = {name: llr_cost(plda, *test) for name, plda in adapted.items()}
    assert all(cost < 0.8 * before for cost in costs.values()), (before, costs)
    assert llr_cost(in_domain, *test) < min(costs.values()), "labels help most"


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        (lambda model: adapt_kaldi(model, np.ones((9, DIM + 1))), "the model 5 values"),
        (lambda model: adapt_kaldi(model, np.ones((1, DIM))), "holds 1 embeddings"),
        (lambda model: adapt_coral_plus(model, np.full((9, DIM), np.nan)), "NaN"),
        (lambda model: adapt_coral(model, np.random.default_rng(0).normal(size=(4, DIM))), "3 of 5 directions only"),
        (lambda model: adapt_coral(model, np.ones((9, DIM))), "0 of 5 directions only"),
        (lambda model: interpolate(model, Plda(np.zeros(2), np.eye(2), np.ones(2))), "has 2 values, the model 5"),
    ],
)
def test_data_faults(model: Plda, adapt: Callable[[Plda], Plda], message: str) -> None:
    with pytest.raises(DataError, match=message):
        adapt(model)


def test_few_embeddings_are_enough_for_the_others(model: Plda) -> None:
    rows = np.random.default_rng(0).normal(size=(3, DIM)) * 9
    for adapted in (adapt_kaldi(model, rows), adapt_coral_plus(model, rows)):
        assert np.linalg.eigvalsh(adapted.within - model.within).min() > -1e-9
        assert np.trace(adapted.between) > np.trace(model.between)


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        (lambda model, rows: adapt_kaldi(model, rows, within_scale=-1), "within_scale: is -1"),
        (lambda model, rows: adapt_coral_plus(model, rows, between_scale=float("nan")), "between_scale: is nan"),
        (lambda model, rows: interpolate(model, model, within_weight=1.5), "within_weight: is 1.5"),
    ],
)
def test_scales(model: Plda, target: np.ndarray, adapt: Callable[[Plda, np.ndarray], Plda], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt(model, target)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Embeddings of two domains, the speakers of both, and a back-end of the first."""
    rng = np.random.default_rng(3)
    for name, shift in (("old", 0.0), ("new", 3.0)):
        rows, speakers = draw(rng, np.full(6, shift), spd(rng, 6), spd(rng, 6), np.full(15, 4))
        keys = [f"{name}{number:02d}" for number in range(len(rows))]
        write_embeddings(tmp_path / f"{name}.npz", Embeddings(keys, rows.astype(np.float32)))
        (tmp_path / f"{name}.utt2spk").write_text("".join(f"{k} {s}\n" for k, s in zip(keys, speakers, strict=True)))
    chain = ("--chain", "mean-subtract | lda 4")
    ran = speakerkit("plda", "train", tmp_path / "old.npz", tmp_path / "old.utt2spk", tmp_path / "b", *chain)
    assert ran.code == 0, ran
    return tmp_path


def test_command(files: Path) -> None:
    before = read_backend(files / "b")
    assert isinstance(before.model, Plda)
    rows = np.load(files / "new.npz")["embeddings"].astype(np.float64)
    for method, options in (
        ("kaldi", ()),
        ("coral", ()),
        ("coral+", ()),
        ("interpolate", ("--utt2spk", files / "new.utt2spk")),
    ):
        ran = speakerkit("plda", "adapt", files / "b", files / "new.npz", files / "out", "--method", method, *options)
        assert ran.code == 0, ran
        after = read_backend(files / "out")
        np.testing.assert_allclose(after.chain.steps[0].mean, rows.mean(axis=0))
        assert [event["event"] for event in after.history] == ["train", "adapt"]
        assert after.history[1]["method"] == method
        # CORAL maps both covariances alike, which leaves their ratios.
        assert np.allclose(after.model.psi, before.model.psi) == (method == "coral")
        assert not np.allclose(after.model.transform, before.model.transform)
    ran = speakerkit("plda", "adapt", files / "b", files / "new.npz", files / "out", "--no-recentre")
    assert ran.code == 0, ran
    kept = read_backend(files / "out")
    np.testing.assert_array_equal(kept.chain.steps[0].mean, before.chain.steps[0].mean)
    expected = adapt_kaldi(before.model, before.chain.apply(rows))
    np.testing.assert_allclose(kept.model.mean, expected.mean)
    np.testing.assert_allclose(kept.model.psi, expected.psi)


def test_command_faults(files: Path) -> None:
    for options, message in (
        (("--method", "best"), "'best' is none of kaldi, coral, coral+, interpolate"),
        (("--method", "interpolate"), "needs the speakers"),
        (("--method", "interpolate", "--utt2spk", files / "old.utt2spk"), "no speaker for 'new00'"),
        (("--method", "coral", "--within", "0.5"), "coral: has no within scale; it takes none"),
        (("--method", "coral+", "--mean-diff-scale", "0.5"), "it takes within_scale, between_scale"),
        (("--within", "-1"), "within_scale: is -1"),
        (("--within", "1e300"), "within_scale: is 1e+300"),
    ):
        ran = speakerkit("plda", "adapt", files / "b", files / "new.npz", files / "out", *options)
        assert (ran.code, len(ran.errors)) == (2, 1), ran
        assert message in ran.errors[0]
    assert not (files / "out").exists()


def test_psda_is_not_adapted() -> None:
    embeddings = Embeddings(list("abcd"), np.random.default_rng(0).normal(size=(4, 3)))
    backend = train_backend(embeddings, dict(zip("abcd", "xxyy", strict=True)), "none", kind="psda")
    with pytest.raises(ConfigError, match="this is PSDA"):
        adapt_backend(backend, embeddings, "kaldi")


def test_few_recordings_are_warned_of(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend, new = read_backend(files / "b"), read_embeddings(files / "new.npz")
    adapt_backend(backend, new, "kaldi")
    assert not caplog.records
    few = Embeddings(new.keys[:4], new.vectors[:4], new.source)
    adapt_backend(backend, few, "coral+")
    assert "adapts 4 values to 4 recordings" in caplog.text
    assert "new.npz" in caplog.text

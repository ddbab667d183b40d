"""A scoring back-end: the chain, the PLDA or PSDA model behind it, and the extractor whose embeddings they fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from speakerkit.data.ark import Embeddings
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification import adaptation
from speakerkit.verification.chain import Chain, Step, fit_chain
from speakerkit.verification.cosine import model_digest, sessions_of
from speakerkit.verification.kaldi_plda import read_kaldi_array, read_kaldi_plda
from speakerkit.verification.plda import Normalisation, Plda, train_plda
from speakerkit.verification.psda import Psda, train_psda
from speakerkit.verification.speakers import SpeakerStatistics, speakers_of
from speakerkit.verification.trials import Scores, Trials
from speakerkit.verification.vectors import Floats, require_directions, unit

logger = logging.getLogger("speakerkit.verification")

DEFAULT_CHAIN = "mean-subtract | length-norm"

Kind = Literal["plda", "psda"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Multi = Literal["book", "average"]
MULTIS: tuple[Multi, ...] = get_args(Multi)


@dataclass(frozen=True, eq=False)
class Backend:
    """Everything between embeddings and log-likelihood ratios.

    Attributes:
        chain: processing of embeddings.
        model: what scores them then.
        dimension: values in an embedding before the chain.
        extractor: SHA-256 of the model that made the training embeddings; ``None`` where it is not known.
        normalise: length normalisation inside PLDA, see :meth:`Plda.project`.
        history: what made it, oldest first: training, import, adaptation, with their settings.
    """

    chain: Chain
    model: Plda | Psda
    dimension: int
    extractor: str | None = None
    normalise: Normalisation = "kaldi"
    history: tuple[dict[str, Any], ...] = ()

    @property
    def kind(self) -> Kind:
        """Which model."""
        return "plda" if isinstance(self.model, Plda) else "psda"

    def require_fit(self, embeddings: Embeddings) -> None:
        """Refuse embeddings of another model or dimension.

        Raises:
            DataError: names the file; the model is compared where both sides know theirs (``STEM.model.json``).
        """
        if embeddings.dim != self.dimension:
            raise DataError(
                embeddings.source,
                f"has {embeddings.dim} values a row, the back-end was made for {self.dimension}",
                "use embeddings of the model that it was trained on, or train it anew",
            )
        digest = model_digest(Path(embeddings.source))
        if None not in (digest, self.extractor) and digest != self.extractor:
            raise DataError(
                embeddings.source,
                "was made by another model than the back-end was trained on",
                "use embeddings of that model, or train the back-end anew",
            )


def train_backend(
    embeddings: Embeddings,
    speakers: Mapping[str, str],
    chain: str = DEFAULT_CHAIN,
    *,
    kind: Kind = "plda",
    iterations: int = 10,
    normalise: Normalisation = "kaldi",
    weights: Mapping[str, float] | None = None,
) -> Backend:
    """Fit a chain and train a model behind it.

    Args:
        embeddings: of the training set.
        speakers: utterance to speaker (``utt2spk``); utterances without embedding are passed over.
        chain: see :func:`fit_chain`.
        kind: "plda" or "psda".
        iterations: of EM.
        normalise: kept for scoring, see :meth:`Plda.project`; PSDA takes none.
        weights: of speakers in PLDA or PSDA, where they are not 1.

    Raises:
        ConfigError: as :func:`fit_chain` and :func:`train_plda`.
        DataError: an embedding without speaker or of zeros, and data that a step or the model refuses.
    """
    labels = speakers_of(embeddings, speakers)
    vectors = _vectors(embeddings, embeddings.keys)
    fitted = fit_chain(chain, vectors, labels, embeddings.source)
    rows = _processed(fitted, vectors, embeddings.keys, embeddings.source, on_sphere=kind == "psda")
    statistics = SpeakerStatistics.of(rows, labels, weights, embeddings.source)
    training = train_psda(statistics, iterations) if kind == "psda" else train_plda(statistics, iterations)
    event = {
        "event": "train",
        "kind": kind,
        "iterations": iterations,
        "speakers": len(statistics.counts),
        "utterances": len(embeddings),
        "log_likelihood": training.log_likelihoods[-1],
    }
    digest = model_digest(Path(embeddings.source))
    return Backend(fitted, training.model, embeddings.dim, digest, normalise, (event,))


def import_kaldi(
    plda: str | Path,
    *,
    mean: str | Path | None = None,
    transform: str | Path | None = None,
    length_norm: bool = True,
    normalise: Normalisation = "kaldi",
    extractor: str | None = None,
) -> Backend:
    """A back-end of the files that Kaldi's recipes leave: ``plda``, ``mean.vec`` and ``transform.mat``.

    Args:
        plda: Kaldi's PLDA.
        mean: vector subtracted first.
        transform: LDA matrix (out, dim), or (out, dim + 1) with an offset, multiplied then.
        length_norm: whether embeddings are length-normalised before PLDA, as ivector-normalize-length does.
        normalise: as Kaldi's --normalize-length and --simple-length-normalization.
        extractor: SHA-256 of the model that made the embeddings.

    Raises:
        DataError: files that cannot be read, or that do not fit each other.
    """
    steps = []
    if mean is not None:
        steps.append(Step("mean-subtract", mean=_vector(mean)))
    model = read_kaldi_plda(plda)
    if transform is not None:
        width = None if not steps or steps[0].mean is None else len(steps[0].mean)
        steps.append(_affine(read_kaldi_array(transform), width, transform))
    if length_norm:
        steps.append(Step("length-norm"))
    first = next((array for step in steps for array in (step.mean, step.matrix) if array is not None), model.mean)
    backend = Backend(Chain(tuple(steps)), model, first.shape[-1], extractor, normalise, ({"event": "import"},))
    if _out_dim(backend.chain, backend.dimension) != model.dim:
        raise DataError(
            plda,
            f"has {model.dim} values, what comes before it gives {_out_dim(backend.chain, backend.dimension)}",
            "give the mean and the transform that belong to it",
        )
    return backend


def adapt_backend(
    backend: Backend,
    embeddings: Embeddings,
    method: adaptation.Method,
    *,
    speakers: Mapping[str, str] | None = None,
    within: float | None = None,
    between: float | None = None,
    mean_diff_scale: float | None = None,
    iterations: int = 10,
    recentre: bool = True,
) -> Backend:
    """Adapt a PLDA back-end to the domain of ``embeddings``.

    Without labels, so few embeddings that they cannot vary in every direction are warned of: what makes their few
    speakers differ is then taken for the domain.

    Args:
        backend: of the old domain.
        embeddings: of the new one.
        method: "kaldi", "coral", "coral+" (without labels), or "interpolate" with a PLDA trained on the new domain.
        speakers: utterance to speaker, for "interpolate".
        within: scale (kaldi 0.3, coral+ 0.8) or weight of the new domain (interpolate 0.5) for the covariance within
            speakers; "coral" has none.
        between: the same between speakers (0.7, 0.8, 0.5).
        mean_diff_scale: of "kaldi" alone, 1.
        iterations: of EM, for "interpolate".
        recentre: take the means of ``mean-subtract`` of the new embeddings, as Kaldi's recipes do.

    Raises:
        ConfigError: PSDA, a scale that the method does not have, "interpolate" without speakers.
        DataError: embeddings of another model, and data that the method refuses.
    """
    if not isinstance(backend.model, Plda):
        raise ConfigError(method, "adapts PLDA, this is PSDA", "train PSDA on the new domain: it has few parameters")
    if method == "interpolate" and speakers is None:
        raise ConfigError(method, "needs the speakers of the new domain", "give its utt2spk, or use coral+")
    scales = _scales(method, {"within": within, "between": between, "mean_diff": mean_diff_scale})
    backend.require_fit(embeddings)
    vectors, source, model = _vectors(embeddings, embeddings.keys), embeddings.source, backend.model
    chain = backend.chain.recentred(vectors) if recentre else backend.chain
    rows = chain.apply(vectors, embeddings.keys, source)
    if method != "interpolate" and len(rows) <= model.dim:
        logger.warning(
            "%s: adapts %d values to %d recordings, which may do harm; take more, of many speakers, and compare",
            source,
            model.dim,
            len(rows),
        )
    if method == "kaldi":
        adapted = adaptation.adapt_kaldi(model, rows, **scales, source=source)
    elif method == "coral":
        adapted = adaptation.adapt_coral(model, rows, source)
    elif method == "coral+":
        adapted = adaptation.adapt_coral_plus(model, rows, **scales, source=source)
    else:
        statistics = SpeakerStatistics.of(rows, speakers_of(embeddings, speakers or {}), source=source)
        in_domain = train_plda(statistics, iterations).model
        adapted = adaptation.interpolate(model, in_domain, **scales, source=source)
    event = {"event": "adapt", "method": method, "recentre": recentre, "utterances": len(embeddings), **scales}
    return replace(backend, chain=chain, model=adapted, history=(*backend.history, event))


def score_backend(
    backend: Backend,
    embeddings: Embeddings,
    trials: Trials,
    *,
    enrol_embeddings: Embeddings | None = None,
    enrol_map: Mapping[str, Sequence[str]] | None = None,
    multi: Multi = "book",
) -> Scores:
    """Log-likelihood ratio of each trial, natural logarithm.

    Args:
        backend: what scores.
        embeddings: of the test ids, and of the enrolment side unless ``enrol_embeddings`` is given.
        trials: what to compare.
        enrol_embeddings: embeddings of the enrolment side.
        enrol_map: keys of the sessions of each enrolment; without it an enrolment is one embedding of its own name.
        multi: with ``enrol_map``, "book" takes the posterior of the speaker given all sessions, "average" the mean of
            their embeddings as one session.

    Raises:
        DataError: embeddings of another model or of zeros, ids without embedding, an enrolment that the map lacks.
    """
    enrol_source = embeddings if enrol_embeddings is None else enrol_embeddings
    backend.require_fit(embeddings)
    backend.require_fit(enrol_source)
    model, pairs = backend.model, (trials.enrol, trials.test)
    on_sphere = isinstance(model, Psda)
    vectors = _vectors(embeddings, trials.test_ids)
    test = _processed(backend.chain, vectors, trials.test_ids, embeddings.source, on_sphere)
    enrol, counts = _enrolments(backend.chain, enrol_source, trials.enrol_ids, enrol_map, multi, on_sphere)
    if isinstance(model, Psda):
        return Scores(trials, model.llr(counts[:, None] * enrol, test, pairs))
    enrol, test = model.project(enrol, counts, backend.normalise), model.project(test, 1, backend.normalise)
    if backend.normalise != "none":
        require_directions(enrol, trials.enrol_ids, enrol_source.source)
        require_directions(test, trials.test_ids, embeddings.source)
    return Scores(trials, model.llr(enrol, counts, test, pairs))


def _vectors(source: Embeddings, keys: Sequence[str]) -> Floats:
    """Embeddings (keys, dim) in float64, refusing zeros: no model is asked what to make of what nothing was said in."""
    vectors = source.vectors[source.rows(keys)].astype(np.float64)
    zero = np.logical_not(vectors.any(axis=1))
    if zero.any():
        fault = f"embedding {keys[int(np.argmax(zero))]!r} is all zeros ({np.sum(zero)} of {len(zero)})"
        raise DataError(source.source, fault, "extract it again, or take it out")
    return vectors


def _processed(chain: Chain, vectors: Floats, names: Sequence[str], source: str, on_sphere: bool) -> Floats:
    rows = chain.apply(vectors, names, source)
    if not on_sphere:
        return rows
    require_directions(rows, names, source)
    return unit(rows)


def _scales(method: adaptation.Method, asked: dict[str, float | None]) -> dict[str, float]:
    """Keyword arguments of an adaptation: its defaults, but for what is asked for."""
    scales = dict(adaptation.SCALES[method])
    for name, value in asked.items():
        if value is None:
            continue
        argument = next((argument for argument in scales if argument.startswith(name)), None)
        if argument is None:
            fault = f"has no {name.replace('_', ' ')} scale"
            raise ConfigError(method, fault, f"it takes {', '.join(scales) or 'none'}")
        scales[argument] = value
    return scales


def _enrolments(
    chain: Chain,
    source: Embeddings,
    ids: Sequence[str],
    enrol_map: Mapping[str, Sequence[str]] | None,
    multi: Multi,
    on_sphere: bool,
) -> tuple[Floats, Floats]:
    """Mean of the processed sessions (enrolments, dim), and how many sessions it stands for."""
    if enrol_map is None:
        return _processed(chain, _vectors(source, ids), ids, source.source, on_sphere), np.ones(len(ids))
    sessions = sessions_of(ids, enrol_map)
    keys = [key for members in sessions.values() for key in members]
    sizes = np.array([len(members) for members in sessions.values()])
    starts, counts = np.cumsum(sizes) - sizes, sizes.astype(np.float64)
    vectors = _vectors(source, keys)
    if multi == "book":
        rows = _processed(chain, vectors, keys, source.source, on_sphere)
        return np.add.reduceat(rows, starts, axis=0) / counts[:, None], counts
    means = np.add.reduceat(vectors, starts, axis=0) / counts[:, None]
    return _processed(chain, means, ids, source.source, on_sphere), np.ones(len(ids))


def _vector(path: str | Path) -> Floats:
    array = read_kaldi_array(path)
    if array.ndim != 1:
        raise DataError(path, f"is a matrix of shape {array.shape}", "give the vector mean.vec")
    return array


def _affine(matrix: Floats, width: int | None, path: str | Path) -> Step:
    """Kaldi's LDA as a step: ``y = A x + b`` is ``A (x - m)`` with ``A m = -b``.

    Without a mean before it, the last column is taken for the offset, which Kaldi's LDA always has.
    """
    if matrix.ndim != 2:
        raise DataError(path, "is a vector", "give the matrix transform.mat")
    if width is not None and matrix.shape[1] not in (width, width + 1):
        raise DataError(
            path, f"takes {matrix.shape[1]} values, the mean has {width}", "give those that belong together"
        )
    if width == matrix.shape[1]:
        return Step("lda", matrix=matrix)
    linear, offset = np.ascontiguousarray(matrix[:, :-1]), matrix[:, -1]
    centre = -np.linalg.pinv(linear) @ offset
    if not np.allclose(linear @ centre, -offset):
        raise DataError(path, "has rows that depend on each other", "compute the transform again")
    return Step("lda", mean=centre, matrix=linear)


def _out_dim(chain: Chain, dimension: int) -> int:
    return next((len(step.matrix) for step in reversed(chain.steps) if step.matrix is not None), dimension)

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
from speakerkit.verification.cosine import model_digest
from speakerkit.verification.kaldi_plda import read_kaldi_array, read_kaldi_plda
from speakerkit.verification.plda import Normalisation, Plda, train_plda
from speakerkit.verification.psda import Psda, train_psda, unit
from speakerkit.verification.speakers import Floats, SpeakerStatistics
from speakerkit.verification.trials import Scores, Trials

DEFAULT_CHAIN = "mean-subtract | length-norm"

logger = logging.getLogger("speakerkit.verification")

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
        DataError: an embedding without speaker, and data that a step or the model refuses.
    """
    labels = speakers_of(embeddings, speakers)
    fitted = fit_chain(chain, embeddings.vectors, labels, embeddings.source)
    rows = fitted.apply(embeddings.vectors, embeddings.keys, embeddings.source)
    statistics = SpeakerStatistics.of(unit(rows) if kind == "psda" else rows, labels, weights, embeddings.source)
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
    mean_diff_scale: float = 1.0,
    iterations: int = 10,
    recentre: bool = True,
) -> Backend:
    """Adapt a PLDA back-end to the domain of ``embeddings``.

    Args:
        backend: of the old domain.
        embeddings: of the new one.
        method: "kaldi", "coral", "coral+" (without labels), or "interpolate" with a PLDA trained on the new domain.
        speakers: utterance to speaker, for "interpolate".
        within: scale (kaldi 0.3, coral+ 0.8) or weight of the new domain (interpolate 0.5) for the covariance within
            speakers; "coral" has none.
        between: the same between speakers (0.7, 0.8, 0.5).
        mean_diff_scale: of "kaldi".
        iterations: of EM, for "interpolate".
        recentre: take the means of ``mean-subtract`` of the new embeddings, as Kaldi's recipes do.

    Raises:
        ConfigError: PSDA, a scale that the method does not have, "interpolate" without speakers.
        DataError: embeddings of another model, and data that the method refuses.
    """
    if not isinstance(backend.model, Plda):
        raise ConfigError(method, "adapts PLDA, this is PSDA", "train PSDA on the new domain: it has few parameters")
    if method == "coral" and (within, between) != (None, None):
        raise ConfigError("coral", "has no scales", "leave them out, or use coral+")
    backend.require_fit(embeddings)
    chain = backend.chain.recentred(embeddings.vectors) if recentre else backend.chain
    rows = chain.apply(embeddings.vectors, embeddings.keys, embeddings.source)
    source, model = embeddings.source, backend.model
    if method == "kaldi":
        within, between = _or(within, 0.3), _or(between, 0.7)
        scales = {"within_scale": within, "between_scale": between, "mean_diff_scale": mean_diff_scale}
        adapted = adaptation.adapt_kaldi(model, rows, **scales, source=source)
    elif method == "coral":
        scales = {}
        adapted = adaptation.adapt_coral(model, rows, source)
    elif method == "coral+":
        within, between = _or(within, 0.8), _or(between, 0.8)
        scales = {"within_scale": within, "between_scale": between}
        adapted = adaptation.adapt_coral_plus(model, rows, **scales, source=source)
    else:
        if speakers is None:
            raise ConfigError(method, "needs the speakers of the new domain", "give its utt2spk, or use coral+")
        scales = {"within_weight": _or(within, 0.5), "between_weight": _or(between, 0.5)}
        statistics = SpeakerStatistics.of(rows, speakers_of(embeddings, speakers), source=source)
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
        DataError: embeddings of another model, ids without embedding, an enrolment that the map lacks.
    """
    enrol_source = embeddings if enrol_embeddings is None else enrol_embeddings
    backend.require_fit(embeddings)
    backend.require_fit(enrol_source)
    on_sphere = isinstance(backend.model, Psda)
    test = _processed(backend.chain, embeddings, trials.test_ids, on_sphere)
    pairs = (trials.enrol, trials.test)
    enrol, counts = _enrolments(backend.chain, enrol_source, trials.enrol_ids, enrol_map, multi, on_sphere)
    if isinstance(backend.model, Psda):
        return Scores(trials, backend.model.llr(counts[:, None] * enrol, test, pairs))
    enrol = backend.model.project(enrol, counts, backend.normalise)
    return Scores(trials, backend.model.llr(enrol, counts, backend.model.project(test, 1, backend.normalise), pairs))


def speakers_of(embeddings: Embeddings, speakers: Mapping[str, str]) -> list[str]:
    """Speaker of each embedding; warns of utterances that have a speaker but no embedding.

    Raises:
        DataError: an embedding has none; names the first and counts them.
    """
    missing = [key for key in embeddings.keys if key not in speakers]
    if missing:
        raise DataError(
            embeddings.source,
            f"no speaker for {missing[0]!r} ({len(missing)} of {len(embeddings)} embeddings)",
            "give the utt2spk of these embeddings",
        )
    if len(speakers) > len(embeddings):
        absent = len(speakers) - len(embeddings)
        logger.warning("%s: %d of %d utterances are left out, no embedding", embeddings.source, absent, len(speakers))
    return [speakers[key] for key in embeddings.keys]


def _processed(chain: Chain, source: Embeddings, keys: Sequence[str], on_sphere: bool) -> Floats:
    rows = chain.apply(source.vectors[source.rows(keys)], keys, source.source)
    return unit(rows) if on_sphere else rows


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
        return _processed(chain, source, ids, on_sphere), np.ones(len(ids))
    missing = [name for name in ids if not enrol_map.get(name)]
    if missing:
        raise DataError(
            "enrolment map",
            f"no recordings for {missing[0]!r} ({len(missing)} of {len(ids)} enrolments are missing)",
            "a line is: enrolment key key ...",
        )
    keys = [key for name in ids for key in enrol_map[name]]
    counts = np.array([len(enrol_map[name]) for name in ids])
    starts = np.cumsum(counts) - counts
    if multi == "book":
        sums = np.add.reduceat(_processed(chain, source, keys, on_sphere), starts, axis=0)
        return sums / counts[:, None], counts.astype(np.float64)
    vectors = source.vectors[source.rows(keys)].astype(np.float64)
    rows = chain.apply(np.add.reduceat(vectors, starts, axis=0) / counts[:, None], ids, source.source)
    return unit(rows) if on_sphere else rows, np.ones(len(ids))


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


def _or(value: float | None, default: float) -> float:
    return default if value is None else value

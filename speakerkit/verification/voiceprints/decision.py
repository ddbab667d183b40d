"""From cosines to answers: is it this speaker, which of the enrolled is it, or is it nobody known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from speakerkit.bundle import Bundle, Calibration
from speakerkit.verification.voiceprints.search import Candidate
from speakerkit.verification.voiceprints.store import UNKNOWN

UNCALIBRATED = "uncalibrated"
ASKED = "--threshold"


@dataclass(frozen=True)
class Verification:
    """Are two voices one speaker's.

    Attributes:
        cosine: in [-1, 1].
        llr: natural logarithm of the likelihood ratio; ``None`` where the model has no map to it.
        threshold: cosine from which on the answer is yes; ``None`` where none is known.
        threshold_source: what it was set on, ``--threshold``, or "uncalibrated".
        calibrated: whether the model has a threshold of its own.
        decision: "undecided" where there is no threshold.
    """

    cosine: float
    llr: float | None
    threshold: float | None
    threshold_source: str
    calibrated: bool
    decision: Literal["same", "different", "undecided"]


@dataclass(frozen=True)
class Identification:
    """Who of the enrolled is speaking.

    Attributes:
        name: the voice, or "unknown".
        reason: why it is unknown; "" where it is not.
        candidates: the nearest voices, nearest first.
        llrs: natural logarithms of their likelihood ratios; ``None`` each where the model has no map to them.
        threshold: as for :class:`Verification`; so are ``threshold_source`` and ``calibrated``.
    """

    name: str
    reason: str
    candidates: tuple[Candidate, ...]
    llrs: tuple[float | None, ...]
    threshold: float | None
    threshold_source: str
    calibrated: bool


def verify(bundle: Bundle, cosine: float, asked: float | None = None) -> Verification:
    """Decide on a cosine; ``asked`` takes the place of the model's threshold.

    Raises:
        BundleError: ``calibration.json`` cannot be used.
    """
    calibration = bundle.calibration()
    threshold, source = _threshold(calibration, asked)
    decision: Literal["same", "different", "undecided"] = "undecided"
    if threshold is not None:
        decision = "same" if cosine >= threshold else "different"
    llr = None if calibration is None else calibration.llr(cosine)
    return Verification(cosine, llr, threshold, source, calibration is not None, decision)


def identify(
    bundle: Bundle, candidates: Sequence[Candidate], asked: float | None = None, margin: float = 0.0
) -> Identification:
    """Name the nearest of the candidates, or nobody.

    Args:
        bundle: the model that made the vectors.
        candidates: nearest first; two or more where ``margin`` shall count.
        asked: threshold that takes the place of the model's.
        margin: cosine by which the nearest must lead the second.

    Raises:
        BundleError: ``calibration.json`` cannot be used.
    """
    calibration = bundle.calibration()
    threshold, source = _threshold(calibration, asked)
    nearest = candidates[0]
    lead = nearest.cosine - candidates[1].cosine if len(candidates) > 1 else math.inf
    if threshold is None:
        reason = "no threshold is known for this model"
    elif nearest.cosine < threshold:
        reason = "the nearest voice is below the threshold"
    elif lead < margin:
        reason = f"the nearest voice leads by {lead:.4f}, less than {margin:g}"
    else:
        reason = ""
    name = UNKNOWN if reason else nearest.name
    llrs = tuple(None if calibration is None else calibration.llr(candidate.cosine) for candidate in candidates)
    return Identification(name, reason, tuple(candidates), llrs, threshold, source, calibration is not None)


def _threshold(calibration: Calibration | None, asked: float | None) -> tuple[float | None, str]:
    if asked is not None:
        return asked, ASKED
    return (None, UNCALIBRATED) if calibration is None else (calibration.threshold, calibration.source)

"""How good an extracted voice is: SI-SDR, SDR, STOI, PESQ, power where it should be quiet, scenarios; no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, lstsq, solve, toeplitz

from speakerkit.errors import DataError, MissingExtraError, first_line

Signal = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LIMIT = 100.0  # dB: beyond, ratios tell of rounding only, and a perfect estimate would be infinitely good
SILENT = 1e-16  # mean square below which a signal is silent: -160 dB
POWER_EPS = 1e-8  # of power a second: -80 dB/s is the floor
TAPS = 512  # of the filter that SDR allows (BSSEval v3)
PESQ_MODES = {8000: "nb", 16000: "wb"}
SCENARIOS = ("QQ", "QS", "SS", "SQ")


def si_sdr(estimate: Signal, target: Signal) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, within ``LIMIT``, of (S,) and (S,), made zero-mean.

    Le Roux et al., "SDR - half-baked or well done?" (2019), eq. 3.

    Raises:
        DataError: one of the two is silent.
    """
    estimate, target = _centred(estimate), _centred(target)
    _refuse_silence(estimate, target)
    wanted = (estimate @ target) / (target @ target) * target
    return _ratio(wanted, estimate - wanted)


def sdr(estimate: Signal, target: Signal) -> float:
    """Signal-to-distortion ratio in dB, within ``LIMIT``, after the best filter of ``TAPS`` on the target.

    That of BSSEval v3 (Vincent et al., 2006), whose SDR does not depend on the other sources.

    Raises:
        DataError: one of the two is silent.
    """
    estimate, target = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    _refuse_silence(estimate, target)
    size = 2 ** int(np.ceil(np.log2(len(target) + TAPS)))
    spectrum = np.fft.rfft(target, size)
    autocorrelation = np.fft.irfft(np.abs(spectrum) ** 2, size)[:TAPS]
    crosscorrelation = np.fft.irfft(np.fft.rfft(estimate, size) * spectrum.conj(), size)[:TAPS]
    gram = toeplitz(autocorrelation)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a narrow-band target: any of its solutions is as good
            taps = solve(gram, crosscorrelation, assume_a="pos")
    except LinAlgError:
        taps = lstsq(gram, crosscorrelation)[0]
    wanted = np.fft.irfft(spectrum * np.fft.rfft(taps, size), size)[: len(target) + TAPS - 1]
    return _ratio(wanted, np.pad(estimate, (0, TAPS - 1)) - wanted)


def stoi(estimate: Signal, target: Signal, rate: int, extended: bool = False) -> float:
    """Short-time objective intelligibility by pystoi, about 0 to 1; ``extended`` for ESTOI.

    Raises:
        DataError: one of the two is silent, or too little of the target is speech.
        MissingExtraError: pystoi is not installed.
    """
    try:
        import pystoi
    except ImportError:
        raise MissingExtraError("STOI", "eval") from None
    _refuse_silence(estimate, target)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # it gives 1e-5 with a warning where it can tell nothing
        try:
            return float(pystoi.stoi(np.asarray(target), np.asarray(estimate), rate, extended=extended))
        except (RuntimeWarning, ValueError):
            raise DataError("STOI", f"finds too little speech in {len(target) / rate:.2f} s") from None


def pesq(estimate: Signal, target: Signal, rate: int) -> float:
    """Perceptual evaluation of speech quality, 1 to 4.64: wide-band at 16 kHz (P.862.2), narrow-band at 8 (P.862.1).

    Raises:
        DataError: one of the two is silent or too short, no speech is found, or the rate is another.
        MissingExtraError: pesq is not installed.
    """
    try:
        import pesq as library
    except ImportError:
        raise MissingExtraError("PESQ", "eval") from None
    if rate not in PESQ_MODES:
        raise DataError("PESQ", f"is not defined at {rate} Hz", "resample to 8 or 16 kHz")
    _refuse_silence(estimate, target)
    try:
        return float(library.pesq(rate, np.asarray(target), np.asarray(estimate), PESQ_MODES[rate]))
    except (library.PesqError, ValueError, ZeroDivisionError) as error:
        words = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else first_line(error)
        raise DataError("PESQ", f"fails ({words.rstrip('.!')})") from None


def power(samples: Signal, rate: int) -> float:
    """Power in dB a second of (S,): ``10 log10(sum of squares / seconds + POWER_EPS)``, as USEV and USED report it.

    Raises:
        DataError: there are no samples.
    """
    if not len(samples):
        raise DataError("power", "has no samples to be measured on")
    exact = np.asarray(samples, np.float64)
    return float(10 * np.log10(exact @ exact * rate / len(exact) + POWER_EPS))


def leakage(estimate: Signal, mixture: Signal) -> float:
    """Energy of an estimate over that of its mixture in dB, within ``LIMIT``: what is left where the target is absent.

    Raises:
        DataError: the mixture is silent.
    """
    if _is_silent(mixture):
        raise DataError("mixture", "is silent")
    return _ratio(np.asarray(estimate, np.float64), np.asarray(mixture, np.float64))


def levelled(estimate: Signal, mixture: Signal) -> Floats:
    """The estimate (S,) at the level at which it is nearest to the mixture (S,), so that its power can be compared."""
    exact, heard = np.asarray(estimate, np.float64), np.asarray(mixture, np.float64)
    energy = exact @ exact
    return exact * (exact @ heard / energy) if energy > 0 else exact


def activity(turns: Iterable[tuple[float, float, str]], samples: int, rate: int) -> dict[str, Bools]:
    """Where each speaker of turns (start, end, speaker) in seconds speaks, (samples,) by name."""
    spoken: dict[str, Bools] = {}
    for start, end, speaker in turns:
        mask = spoken.setdefault(speaker, np.zeros(samples, dtype=bool))
        mask[round(start * rate) : round(end * rate)] = True
    return spoken


def scenarios(target: Bools, others: Bools) -> dict[str, Bools]:
    """Samples (S,) of each scenario: whether the target, then whether anybody else, is quiet (Q) or speaks (S)."""
    return dict(zip(SCENARIOS, (~target & ~others, ~target & others, target & others, target & ~others), strict=True))


def _centred(signal: Signal) -> Floats:
    exact = np.asarray(signal, np.float64)
    return exact - exact.mean() if len(exact) else exact


def _is_silent(signal: Signal) -> bool:
    exact = np.asarray(signal, np.float64)
    return not len(exact) or bool(exact @ exact <= SILENT * len(exact))


def _refuse_silence(estimate: Signal, target: Signal) -> None:
    for name, signal in (("estimate", estimate), ("target", target)):
        if _is_silent(signal):
            raise DataError(name, "is silent")


def _ratio(wanted: Floats, rest: Floats) -> float:
    """Energies' ratio in dB, within ``LIMIT``."""
    energies = np.maximum([wanted @ wanted, rest @ rest], np.finfo(np.float64).tiny)
    return float(np.clip(10 * (np.log10(energies[0]) - np.log10(energies[1])), -LIMIT, LIMIT))

"""Synthetic room responses, noises, and what a microphone and a line do to speech."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.signal import fftconvolve

from speakerkit.audio import Samples


def room_response(rng: np.random.Generator, rate: int, rt60: tuple[float, float] = (0.15, 0.8)) -> Samples:
    """(samples,) float32, peak 1: direct sound, early reflections, and noise that decays by 60 dB in RT60 seconds.

    Highs decay faster than lows, as walls and air make them. The direct sound is the first sample, so that
    reverberant speech stays where it was in time.
    """
    seconds = rng.uniform(*rt60)
    count = max(64, round(seconds * rate))
    time = np.arange(count) / rate
    tail = np.zeros(count)
    for low, high, factor in ((60, 800, 1.1), (800, 3000, 1.0), (3000, 0.5 * rate, 0.7)):
        tail += _band(rng.standard_normal(count), rate, low, high) * 10 ** (-3 * time / (factor * seconds))
    gap = rng.uniform(0.004, 0.02)
    tail[time < gap] = 0
    response = tail * rng.uniform(0.02, 0.12)
    for delay in np.cumsum(rng.exponential(0.004, 8)) + rng.uniform(0.001, 0.006):
        place = round(delay * rate)
        if place < count:
            response[place] += rng.choice((-1, 1)) * rng.uniform(0.1, 0.6) / (1 + 60 * delay)
    response[0] = 1.0
    return (response / np.abs(response).max()).astype(np.float32)


def recording(speech: Samples, rng: np.random.Generator, rate: int, severity: float) -> Samples:
    """``speech`` (samples,) as some microphone in some room heard it, float32 with a peak of at most 1.

    Args:
        severity: 0 to 1, how far rooms, frequency responses and noise may go.
    """
    sound = speech.astype(np.float64)
    if rng.random() < 0.5 * severity:
        sound = fftconvolve(sound, room_response(rng, rate, (0.1, 0.35)))[: len(sound)]
    sound = _coloured(sound, rng, rate, spread=4.0 * severity)
    snr = rng.uniform(30 - 20 * severity, 40)  # dB
    noise = coloured_noise(rng, len(sound), rate)
    sound += noise * np.sqrt(np.mean(sound**2) / np.mean(noise**2.0) / 10 ** (snr / 10))
    peak = 10 ** (rng.uniform(-24, -1) / 20)
    return (peak * sound / np.abs(sound).max()).astype(np.float32)


def coloured_noise(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """(count,) float32, RMS 0.1: noise with a spectrum falling by 0 to 6 dB an octave and bumps of its own."""
    slope = rng.uniform(0, 1)
    noise = _filtered(rng.standard_normal(count), rate, lambda hertz: np.maximum(hertz, 20) ** -slope)
    noise = _coloured(noise, rng, rate, spread=5.0)
    return _levelled(noise)


def hum(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """(count,) float32, RMS 0.1: a motor or the mains, harmonics of 45 to 130 Hz with a slow swing."""
    time = np.arange(count) / rate
    base = rng.uniform(45, 130)
    sound = np.zeros(count)
    for harmonic in range(1, 25):
        level = rng.uniform(0, 1) / harmonic ** rng.uniform(0.5, 1.5)
        sound += level * np.sin(2 * np.pi * (harmonic * base * time + rng.random()))
    sound *= 1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 6) * time)
    return _levelled(sound + 0.02 * rng.standard_normal(count))


def clicks(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """(count,) float32, RMS 0.1: knocks and rattles, short ringing bursts at irregular times."""
    sound = 0.001 * rng.standard_normal(count)
    length = round(0.08 * rate)
    time = np.arange(length) / rate
    ring = rng.uniform(300, 5000)
    for start in np.cumsum(rng.exponential(rng.uniform(0.05, 0.4), 200)):
        place = round(start * rate)
        if place + length >= count:
            break
        burst = np.exp(-time * rng.uniform(60, 400)) * np.sin(2 * np.pi * ring * rng.uniform(0.8, 1.25) * time)
        sound[place : place + length] += rng.uniform(0.2, 1) * burst
    return _levelled(sound)


def tones(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """(count,) float32, RMS 0.1: a tune of decaying chords in a scale, the demo corpus's music."""
    sound = np.zeros(count)
    scale = rng.uniform(110, 330) * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16]) / 12)
    step = rng.uniform(0.15, 0.5)
    partials = rng.uniform(0, 1, 6) / np.arange(1, 7)
    length = round(2.5 * step * rate)
    time = np.arange(length) / rate
    for start in np.arange(0, count / rate, step):
        place = round(start * rate)
        for pitch in rng.choice(scale, size=rng.integers(1, 4), replace=False):
            note = sum(level * np.sin(2 * np.pi * pitch * (1 + number) * time) for number, level in enumerate(partials))
            part = (note * np.exp(-time * 3 / step) * rng.uniform(0.3, 1))[: count - place]
            sound[place : place + len(part)] += part
    return _levelled(sound + 1e-3 * rng.standard_normal(count))


NOISES: dict[str, Callable[[np.random.Generator, int, int], Samples]] = {
    "coloured": coloured_noise,
    "hum": hum,
    "clicks": clicks,
}


def babble(voices: list[Samples], rng: np.random.Generator, count: int) -> Samples:
    """(count,) float32, RMS 0.1: several voices at once, each from a place of its own and repeated if short."""
    sound = np.zeros(count)
    for voice in voices:
        level = rng.uniform(0.5, 1) / max(float(np.sqrt(np.mean(voice**2.0))), 1e-6)
        sound += level * np.resize(np.roll(voice, int(rng.integers(len(voice)))), count)
    return _levelled(sound)


def _levelled(sound: np.ndarray) -> Samples:
    sound = 0.1 * sound / np.sqrt(np.mean(sound**2) + 1e-20)
    return (sound / max(1.0, np.abs(sound).max() / 0.99)).astype(np.float32)


def _band(sound: np.ndarray, rate: int, low: float, high: float) -> np.ndarray:
    return _filtered(sound, rate, lambda hertz: (hertz >= low) & (hertz < high))


def _coloured(sound: np.ndarray, rng: np.random.Generator, rate: int, spread: float) -> np.ndarray:
    """``sound`` through a smooth frequency response by chance: ``spread`` dB of standard deviation at ten points."""
    points = np.geomspace(60, rate / 2, 10)
    gains = rng.normal(0, spread, len(points))  # dB
    return _filtered(
        sound, rate, lambda hertz: 10 ** (np.interp(np.log(np.maximum(hertz, 1)), np.log(points), gains) / 20)
    )


def _filtered(sound: np.ndarray, rate: int, response: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """``sound`` (samples,) with its spectrum times ``response`` (of frequencies in Hz), zero phase."""
    size = next_fast_len(len(sound), real=True)
    spectrum = rfft(sound, size) * response(rfftfreq(size, 1 / rate))
    return irfft(spectrum, size)[: len(sound)]

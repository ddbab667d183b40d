"""One web page of a recording: who speaks when, to look at, to listen to, and to name."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from speakerkit.audio import read_blocks
from speakerkit.diarization.formats import rounded
from speakerkit.diarization.formats.rttm import name_field
from speakerkit.diarization.turns import Diarization, Span, Turn
from speakerkit.errors import AudioError, DataError
from speakerkit.pages import as_html, data_address, file_link, provenance, write_page

LARGEST_EMBEDDED = 64_000_000  # bytes of sound in a page
PEAKS = 2000  # of the waveform, at most
PEAK_SECONDS = 0.02  # each of them lasts at least
SLACK = 1.0  # seconds that turns may go beyond the sound: models' frames, encoders' padding
# What browsers play.
SOUNDS = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".mp4": "audio/mp4",
    ".aac": "audio/aac",
    ".webm": "audio/webm",
}
GOLDEN_ANGLE = 137.508  # degrees: hues of any number of speakers lie apart
FIRST_HUE = 210
MOST_HEAT = 55  # per cent of colour behind a cosine of 1, on which text can still be read

logger = logging.getLogger("speakerkit.diarization")


@dataclass(frozen=True, eq=False)
class Sound:
    """The recording as a page has it.

    Attributes:
        address: where the player finds it; the sound itself where it is embedded.
        seconds: how long it lasts.
        peaks: (P,) largest magnitude of stretches of equal length.
    """

    address: str
    seconds: float
    peaks: npt.NDArray[np.float32]


def write_report(
    path: str | Path,
    diarization: Diarization,
    *,
    audio: str | Path | None = None,
    embed_audio: bool = False,
    title: str = "",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the page, atomically; the same bytes for the same input, in whatever file of a folder.

    Args:
        path: HTML file.
        diarization: whose turns are shown, on whole milliseconds.
        audio: the recording, which the page links to: by its whole path where that is given, else from the page's
            folder.
        embed_audio: put the recording into the page, if it has at most ``LARGEST_EMBEDDED`` bytes; with a warning it is
            linked where it has more. What browsers do not play becomes 16-bit FLAC, of all channels' mean.
        title: heading; the recording's id where there is none.
        notes: further lines on how the page was made, such as the command.

    Raises:
        AudioError: a recording that cannot be read, or that browsers do not play and that is not embedded.
        DataError: turns that go beyond the recording, or embeddings that cannot be compared.
    """
    shown = rounded(diarization)
    sound = None if audio is None else _sound(Path(audio), embed_audio, Path(path).absolute().parent)
    end = max((turn.end for turn in shown.turns), default=0.0)
    if sound is not None and end > sound.seconds + SLACK:
        fault = f"lasts {sound.seconds:.2f} s, but turns of {shown.recording[:200]!r} go to {end:.2f} s"
        raise DataError(audio, fault, "check that the two belong together")
    length = max(end, shown.duration or 0.0, sound.seconds if sound else 0.0) or 1.0
    parts = [
        _summary(shown, length, known=sound is not None or shown.duration is not None),
        _tools(sound),
        _timeline(shown, length, sound),
        _talk_time(shown),
        _similarity(shown),
        _turn_list(shown, play=sound is not None),
        provenance({**_settings(shown), **(notes or {})}, ("numpy",)),
        f'<script type="application/json" id="data">{_data(shown, length)}</script>',
    ]
    style, script = (
        files("speakerkit.diarization").joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    write_page(path, title or shown.recording, parts, style=style, script=script)


def _sound(path: Path, embed: bool, folder: Path) -> Sound:
    """Read it once for its peaks; link or embed it."""
    peaks, seconds = _peaks(path)
    kind = SOUNDS.get(path.suffix.lower())
    if embed:
        content = path.read_bytes() if kind else _as_flac(path)
        if len(content) <= LARGEST_EMBEDDED:
            return Sound(data_address(kind or "audio/flac", content), seconds, peaks)
        sizes = f"{len(content) / 1e6:.0f} MB, at most {LARGEST_EMBEDDED / 1e6:.0f} MB are embedded"
        if kind:
            logger.warning("%s: is linked, not embedded: it has %s", path, sizes)
    if kind is None:
        remedy = "embed it (--embed-audio), which makes it FLAC" if not embed else f"it would have {sizes}; make it ogg"
        raise AudioError(str(path), f"is of a type ({path.suffix or 'no suffix'}) that browsers do not play", remedy)
    return Sound(file_link(path, folder), seconds, peaks)


def _peaks(path: Path) -> tuple[npt.NDArray[np.float32], float]:
    """At most ``PEAKS`` peaks of a file, and its seconds."""
    found: list[npt.NDArray[np.float32]] = []
    rest = np.zeros(0, np.float32)
    count = rate = 0
    for block in read_blocks(path):
        count, rate = count + len(block.samples), block.rate
        step = max(1, round(PEAK_SECONDS * rate))
        samples = np.concatenate([rest, np.abs(block.samples)])
        whole = len(samples) // step * step
        found.append(samples[:whole].reshape(-1, step).max(axis=1))
        rest = samples[whole:]
    peaks = np.concatenate([*found, rest.max(keepdims=True, initial=0.0)])
    starts = np.unique(np.linspace(0, len(peaks), min(PEAKS, len(peaks)), endpoint=False).astype(int))
    return np.maximum.reduceat(peaks, starts), count / rate


def _as_flac(path: Path) -> bytes:
    stream = io.BytesIO()
    blocks = read_blocks(path)
    first = next(blocks)
    with soundfile.SoundFile(stream, "w", first.rate, 1, "PCM_16", format="FLAC") as sound:
        for block in (first, *blocks):
            sound.write(block.samples)
    return stream.getvalue()


def _summary(diarization: Diarization, length: float, known: bool) -> str:
    """How much is spoken, by how many, and how much at once."""
    speech, overlap = _seconds(diarization.speech), _seconds(diarization.overlap)
    count, turns = len(diarization.labels), len(diarization.turns)
    lasting = "lasts" if known else "is known up to"
    sentences = [f"The recording {lasting} {_clock(length)}."]
    if turns:
        sentences.append(
            f"Speech fills {_percent(speech, length)} of it, of {count:,} speaker{'s' * (count > 1)} in {turns:,} "
            f"turn{'s' * (turns > 1)}; in {_percent(overlap, speech)} of the speech two or more speak at once."
        )
    else:
        sentences.append("Nobody speaks in it.")
    return f'<p class="summary">{" ".join(sentences)}</p>'


def _tools(sound: Sound | None) -> str:
    """The player, zoom and saving, which stay in sight."""
    player = ""
    if sound is not None:
        player = (
            f'<audio id="audio" controls preload="metadata" src="{escape(sound.address)}"></audio>\n'
            f'<span id="clock">{_clock(0.0)}</span>\n'
        )
    return (
        f'<div class="tools">\n{player}'
        '<button type="button" id="wider" aria-label="Zoom out">−</button>\n'
        '<button type="button" id="closer" aria-label="Zoom in">+</button>\n'
        '<button type="button" id="whole">Whole</button>\n'
        '<button type="button" id="save">Save RTTM</button>\n'
        '<span id="status" class="note" role="status"></span>\n</div>'
    )


def _timeline(diarization: Diarization, length: float, sound: Sound | None) -> str:
    """A row a speaker, and one for overlap."""
    labels = diarization.labels
    names = "".join(
        f'<div>{_dot(row)}<input data-name="{row}" value="{_shown(label)}" aria-label="Name of speaker {row + 1}" '
        'autocomplete="off" spellcheck="false"></div>\n'
        for row, label in enumerate(labels)
    )
    bars = "".join(
        f'<g style="--hue:{_hue(row)}">\n{_bars(diarization, label, row)}</g>\n' for row, label in enumerate(labels)
    )
    overlap = "".join(
        f'<rect x="{start:g}" y="{len(labels)}.3" width="{end - start:.3f}" height=".4"/>\n'
        for start, end in diarization.overlap
    )
    wave, beside, listen, keys = "", "", "", ""
    if sound is not None:
        wave, beside = f"{_waveform(sound, length)}\n", '<div class="wave"></div>\n'
        listen = "Click a turn to play it; any other place moves the player there. "
        keys = "space plays and pauses, arrows go a second, Shift and arrows play the turn before or after, "
    return (
        '<h2 id="timeline">Timeline</h2>\n<div class="timeline">\n<div class="names">\n<div class="axis"></div>\n'
        f"{beside}{names}"
        '<div class="note">Two or more</div>\n</div>\n<div class="scroll" id="scroll" tabindex="0" role="group" '
        'aria-labelledby="timeline" aria-describedby="keys">\n'
        f'<div class="track" id="track">\n<div class="axis" id="axis" aria-hidden="true"></div>\n{wave}'
        f'<svg class="rows" style="--count:{len(labels) + 1}" viewBox="0 0 {length:.3f} {len(labels) + 1}" '
        'preserveAspectRatio="none" role="img" aria-label="Turns of each speaker, as in the list of turns">\n'
        f'{bars}<g class="overlap">\n{overlap}</g>\n</svg>\n<div class="head" id="head"></div>\n'
        "</div>\n</div>\n</div>\n"
        f'<p class="note" id="keys">{listen}Type over a name to rename the speaker. Keys on the timeline: {keys}'
        "+ and − zoom (so does Ctrl with the wheel), 0 shows the whole.</p>"
    )


def _bars(diarization: Diarization, label: str, row: int) -> str:
    """A speaker's turns; the less sure the paler."""
    bars = []
    for number, turn in enumerate(diarization.turns):
        if turn.speaker == label:
            pale = "" if turn.confidence is None else f' fill-opacity="{0.25 + 0.75 * turn.confidence:.3f}"'
            sure = "" if turn.confidence is None else f", confidence {turn.confidence:.3f}"
            bars.append(
                f'<rect data-turn="{number}" x="{turn.start:.3f}" y="{row}.15" width="{turn.seconds:.3f}" '
                f'height=".7"{pale}><title>{_clock(turn.start)} to {_clock(turn.end)}{sure}</title></rect>\n'
            )
    return "".join(bars)


def _waveform(sound: Sound, length: float) -> str:
    """The sound's outline, as high as its loudest peak."""
    top = float(sound.peaks.max()) or 1.0
    times = np.linspace(0, sound.seconds, len(sound.peaks), endpoint=False)
    levels = sound.peaks / top
    above = [f"L{time:.3f} {-level:.3f}" for time, level in zip(times, levels, strict=True)]
    below = [f"L{time:.3f} {level:.3f}" for time, level in zip(times[::-1], levels[::-1], strict=True)]
    return (
        f'<svg class="wave" viewBox="0 -1 {length:.3f} 2" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="M0 0{"".join(above)}L{sound.seconds:.3f} 0{"".join(below)}Z"/></svg>'
    )


def _talk_time(diarization: Diarization) -> str:
    """How long each speaks, alone and with others."""
    seconds = diarization.talk_time()
    total, overlap = sum(seconds.values()), diarization.overlap
    sure = _has_confidences(diarization)
    alike = any(diarization.speakers[label].cosine is not None for label in seconds)
    rows = []
    for row, label in enumerate(seconds):
        turns = [turn for turn in diarization.turns if turn.speaker == label]
        cosine = diarization.speakers[label].cosine
        cells = [
            _clock(seconds[label], 1),
            _percent(seconds[label], total),
            f"{len(turns):,}",
            f"{seconds[label] / len(turns):.2f} s",
            _percent(_shared(overlap, turns), seconds[label]),
            *[_mean_confidence(turns)] * sure,
            *["" if cosine is None else _cosine(cosine)] * alike,
        ]
        rest = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{_dot(row)}{_name(row, label)}</th>{rest}</tr>\n')
    heads = ["Speaker", "Talks", "Share", "Turns", "Mean turn", "With others"]
    heads += ["Confidence"] * sure + ["Cosine with the known voice"] * alike
    return (
        '<h2 id="talk">Talk time</h2>\n<div class="wide" role="region" aria-labelledby="talk" tabindex="0">\n'
        '<table class="figures"><caption>Share: of the seconds of all. With others: of the speaker&#x27;s own.'
        f"</caption>\n<thead><tr>{_heads(heads)}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table>\n</div>"
    )


def _shared(spans: Sequence[Span], turns: Sequence[Turn]) -> float:
    """Seconds of turns that lie in sorted, disjoint spans."""
    times = np.array([0.0, *(time for span in spans for time in span)])
    before = np.cumsum([0.0, *(step for start, end in spans for step in (0.0, end - start))])  # at each of the times
    ends, starts = (np.interp([getattr(turn, edge) for turn in turns], times, before) for edge in ("end", "start"))
    return float(np.sum(ends - starts))


def _mean_confidence(turns: Sequence[Turn]) -> str:
    """Over time; empty where nothing is known."""
    known = [turn for turn in turns if turn.confidence is not None]
    seconds = sum(turn.seconds for turn in known)
    return f"{sum((turn.confidence or 0.0) * turn.seconds for turn in known) / seconds:.3f}" if known else ""


def _similarity(diarization: Diarization) -> str:
    """Cosines of the speakers' embeddings, if there are two at least."""
    known = {
        row: voice
        for row, label in enumerate(diarization.labels)
        if (voice := diarization.speakers[label].embedding) is not None
    }
    if len(known) < 2:
        return ""
    cosines = speaker_cosines(diarization.recording, list(known.values()))
    names = {row: f"{_dot(row)}{_name(row, diarization.labels[row])}" for row in known}
    head = "".join(f'<th scope="col">{names[row]}</th>' for row in known)
    body = "".join(
        f'<tr><th scope="row">{names[row]}</th>'
        + "".join(f'<td style="--heat:{MOST_HEAT * max(0.0, value):.0f}%">{_cosine(value)}</td>' for value in values)
        + "</tr>\n"
        for row, values in zip(known, cosines.tolist(), strict=True)
    )
    return (
        '<h2 id="similarity">Similarity of the speakers</h2>\n'
        '<div class="wide" role="region" aria-labelledby="similarity" tabindex="0">\n'
        '<table class="matrix"><caption>Cosines of their embeddings; two that are alike may be one speaker.</caption>\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>\n</div>"
    )


def speaker_cosines(recording: str, embeddings: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    """Cosines (K, K) of embeddings of K speakers of a recording.

    Raises:
        DataError: embeddings of different sizes, or one without direction.
    """
    sizes = sorted({len(each) for each in embeddings})
    if len(sizes) > 1:
        raise DataError(
            recording, f"has embeddings of {sizes[0]} and of {sizes[-1]} values", "make them with one model"
        )
    stacked = np.stack(embeddings).astype(np.float64)  # (speakers, values)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise DataError(recording, "has an embedding that is zero or not finite", "make it again")
    units = stacked / norms
    return np.clip(units @ units.T, -1.0, 1.0)


def _turn_list(diarization: Diarization, play: bool) -> str:
    """Every turn, to play."""
    index = {label: row for row, label in enumerate(diarization.labels)}
    sure = _has_confidences(diarization)
    rows = []
    for number, turn in enumerate(diarization.turns):
        start, end, row = _clock(turn.start), _clock(turn.end), index[turn.speaker]
        button = f'<button type="button" data-play="{number}" aria-label="Play {start} to {end}">▶</button>'
        confidence = "" if turn.confidence is None else f"{turn.confidence:.3f}"
        rows.append(
            f'<tr data-turn="{number}"><td>{button if play else number + 1}</td><td>{start}</td><td>{end}</td>'
            f"<td>{turn.seconds:.3f}</td><td>{_dot(row)}{_name(row, turn.speaker)}</td>"
            f"{f'<td>{confidence}</td>' * sure}</tr>\n"
        )
    doubtful = '<p><button type="button" id="doubtful" aria-pressed="false">Least sure first</button></p>\n' * sure
    heads = ["Play" if play else "Turn", "Start", "End", "Seconds", "Speaker", *["Confidence"] * sure]
    return (
        f'<h2 id="list">Turns</h2>\n{doubtful}<div class="turns" role="region" aria-labelledby="list" tabindex="0">\n'
        f'<table id="turns"><thead><tr>{_heads(heads)}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table>\n</div>'
    )


def _has_confidences(diarization: Diarization) -> bool:
    return any(turn.confidence is not None for turn in diarization.turns)


def _heads(names: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{name}</th>' for name in names)


def _settings(diarization: Diarization) -> dict[str, str]:
    found = {"Recording": f"{diarization.recording}, channel {diarization.channel}"}
    if diarization.settings:
        found["Settings"] = json.dumps(dict(diarization.settings), ensure_ascii=False, default=str)
    return found


def _data(diarization: Diarization, length: float) -> str:
    """What the script knows, as JSON in which nothing can end its element."""
    index = {label: row for row, label in enumerate(diarization.labels)}
    turns = [
        (
            round(turn.start * 1000),
            round(turn.end * 1000),
            index[turn.speaker],
            None if turn.confidence is None else round(turn.confidence * 1000),
        )
        for turn in diarization.turns
    ]
    data = {
        "recording": name_field(diarization.recording),
        "channel": diarization.channel,
        "length": round(length * 1000),
        "speakers": diarization.labels,
        "turns": turns,
    }
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hue(row: int) -> int:
    return round(FIRST_HUE + GOLDEN_ANGLE * row) % 360


def _dot(row: int) -> str:
    return f'<span class="dot" style="--hue:{_hue(row)}"></span>'


def _shown(label: str) -> str:
    """A speaker's name; blanks alone would not be seen."""
    return as_html(label) or as_html(name_field(label))


def _name(row: int, label: str) -> str:
    """A speaker's name where the script can change it."""
    return f'<span data-speaker="{row}">{_shown(label)}</span>'


def _seconds(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def _cosine(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")


def _clock(seconds: float, decimals: int = 3) -> str:
    """Hours, where there are any, minutes and seconds."""
    units = round(seconds * 10**decimals)
    minutes, rest = divmod(units, 60 * 10**decimals)
    second = f"{rest / 10**decimals:0{decimals + 3}.{decimals}f}"
    return f"{minutes // 60}:{minutes % 60:02d}:{second}" if minutes >= 60 else f"{minutes}:{second}"

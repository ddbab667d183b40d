"""One web page of extracted voices: figures, box plots, and the worst estimates to see and to hear."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
import soundfile

from speakerkit.audio import Audio, Samples, load_audio
from speakerkit.errors import AudioError
from speakerkit.extraction.metrics import levelled
from speakerkit.extraction.plots import plot_before_after, plot_improvements
from speakerkit.extraction.scores import FIGURES, ExtractionScore, ItemScore
from speakerkit.extraction.scoring import Item
from speakerkit.pages import as_html, data_address, inline_svg, provenance, write_page
from speakerkit.pictures import require_matplotlib

LONGEST = 30.0  # seconds of each sound that a page holds
WINDOW = 0.032  # seconds of a spectrogram's frames
COLUMNS, ROWS = 400, 128  # of a spectrogram, at most
RANGE = 70.0  # dB that it shows below the mixture's peak
LEVELS = 64  # of colour: the fewer, the smaller the page
NAMED = 5  # keys of a kind of failure
HEADS = {"mixture": "Mixture", "estimate": "Extracted", "target": "The voice alone"}
MEANINGS = {
    "SI-SDR, SDR": "energy of the target's voice over that of all else in dB; for SI-SDR at any level, for SDR "
    "(BSSEval v3) after any filter of 512 taps",
    "STOI, ESTOI": "short-time objective intelligibility, 0 to 1",
    "PESQ": "perceived quality, 1 to 4.64; wide-band at 16 kHz, narrow-band at 8 kHz",
    "power": "of what the output holds where the target says nothing; the less the better",
    "swapped": "the output is nearer to another voice of the mixture than to the target's",
}
STYLE = """
.sounds{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr));gap:1rem;margin-top:.6rem}
figure{margin:0;min-width:0}
figure img{display:block;width:100%;height:9rem;background:#000}
figure audio,.enrolment audio{width:100%}
.enrolment{max-width:24rem}
.item{border-top:1px solid var(--line);margin-top:1.5rem;break-inside:avoid}
.item h3{margin:.8rem 0 .2rem;overflow-wrap:anywhere}
.item p{margin:.2rem 0}
.item table{margin:.4rem 0}
.item th,.item td{padding-top:.15rem;padding-bottom:.15rem;font-size:.9rem}
.bad{color:#b3261e;font-weight:600}
@media (prefers-color-scheme:dark){.bad{color:#ff9a92}}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1.5rem}
svg *{stroke-linejoin:round;stroke-linecap:butt}
"""
# One sound at a time; another of the same item goes on where the last one stood, so that they can be compared.
SCRIPT = """
addEventListener("play", (event) => {
  const now = event.target, item = now.closest("[data-item]");
  for (const other of document.querySelectorAll("audio")) {
    if (other === now || other.paused) continue;
    other.pause();
    const alike = item && item === other.closest("[data-item]") && now.dataset.aligned && other.dataset.aligned;
    if (alike && other.currentTime < now.duration) now.currentTime = other.currentTime;
  }
}, true);
"""


def write_report(
    path: str | Path,
    score: ExtractionScore,
    items: Sequence[Item],
    estimates: Mapping[str, str],
    *,
    worst: int = 20,
    title: str = "",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the page, atomically; the same bytes for the same input. Sounds and pictures are in it.

    Args:
        path: HTML file.
        score: of these items and estimates.
        items: what was to be extracted.
        estimates: path of each estimate by MIXTURE-SPEAKER.
        worst: at most so many estimates are shown, those without any figure first, then by rising SI-SDRi.
        title: heading, such as the test set's name.
        notes: further lines on how the page was made, such as the command.

    Raises:
        AudioError: a mixture, a reference or an enrolment that cannot be read.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib("report")
    by_key = {item.key: item for item in items}
    shown = [each for each in score.worst(worst) if each.key in by_key]
    sections = [_section(each, by_key[each.key], estimates.get(each.key, "")) for each in shown]
    parts = [
        _summary(score),
        _figures(score),
        _plots(score),
        _failures(score),
        f"<h2>Worst first</h2>\n{_worst_note(len(shown), score)}" if shown else "",
        *sections,
        provenance(notes or {}, ("numpy", "scipy", "matplotlib")),
    ]
    write_page(path, title or "Extraction report", parts, style=STYLE, script=SCRIPT)


def _summary(score: ExtractionScore) -> str:
    gain, shares = score.summary("si_sdr").improvement, score.shares()
    mixtures = len({item.mixture for item in score.items})
    sentences = [f"From {mixtures:,} mixtures {len(score.items):,} voices were to be extracted."]
    if gain:
        sentences.append(
            f"On average SI-SDR rises by {gain.mean:.2f} dB (median {gain.median:.2f} dB, {gain.count:,} voices)."
        )
    poor, swapped = shares["not_improved"], shares["swapped"]
    if poor.rate is not None:
        sentences.append(f"For {poor.count:,} of {poor.of:,} it rises by less than 1 dB, or nothing can be measured.")
    if swapped.rate is not None:
        sentences.append(f"{swapped.count:,} of {swapped.of:,} are nearer to another voice of their mixture.")
    return f'<p class="summary">{" ".join(sentences)}</p>'


def _figures(score: ExtractionScore) -> str:
    tables = [
        _table("Means over all voices.", score.figure_rows()),
        _table("Shares of the voices.", score.share_rows()),
        _table("Mean improvements of groups, and shares.", score.group_rows()),
    ]
    meanings = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>\n" for name, meaning in MEANINGS.items())
    return f'<h2>Figures</h2>\n{"".join(tables)}<dl class="note">\n{meanings}</dl>'


def _table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    """Rows below their heading; nothing where there are none."""
    heads, *body = rows
    if not body:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{as_html(name)}</th>{"".join(f"<td>{as_html(cell)}</td>" for cell in cells)}</tr>\n'
        for name, *cells in body
    )
    head = "".join(f'<th scope="col">{as_html(name)}</th>' for name in heads)
    return (
        f'<div class="wide"><table class="figures"><caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>\n"
    )


def _plots(score: ExtractionScore) -> str:
    if score.summary("si_sdr").improvement is None:
        return ""
    drawn: list[tuple[Callable[[TextIO], None], str, str]] = [
        (
            partial(plot_improvements, score),
            "Box plots of the improvement of SI-SDR",
            "Box: the middle half; line: the median; dot: the mean; circles: items far from the box.",
        ),
        (
            partial(plot_before_after, score),
            "SI-SDR of each estimate against that of its mixture",
            "On the line nothing was gained.",
        ),
    ]
    figures = []
    for number, (draw, label, caption) in enumerate(drawn):
        stream = io.StringIO()
        draw(stream)
        picture = inline_svg(stream.getvalue(), f"p{number}-", label)
        figures.append(f"<figure>\n{picture}\n<figcaption>{caption}</figcaption>\n</figure>")
    return '<h2>Plots</h2>\n<div class="plots">\n' + "\n".join(figures) + "\n</div>"


def _failures(score: ExtractionScore) -> str:
    """What could not be measured, why, and of which items."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for item in score.items:
        said = {"the estimate": item.error} if item.error else item.failures
        for figure, why in said.items():
            name = FIGURES[figure].heading if figure in FIGURES else figure
            kinds.setdefault((name, why), []).append(item.key)
    rows = [["what", "why", "items", "such as"]]
    rows += [[what, why, str(len(keys)), ", ".join(keys[:NAMED])] for (what, why), keys in kinds.items()]
    table = _table("These are in no mean.", rows).replace('class="figures"', 'class="failures"')
    return f"<h2>Not measured</h2>\n{table}" if table else ""


def _worst_note(count: int, score: ExtractionScore) -> str:
    present = sum(item.present for item in score.items)
    return (
        f'<p class="note">{count:,} of {present:,} voices, by SI-SDR improvement. While one sound of a mixture plays, '
        "start another: it goes on from the same place. Spectrograms have the level at which the estimate is nearest "
        f"to the mixture, {RANGE:.0f} dB below its peak are shown.</p>"
    )


def _section(score: ItemScore, item: Item, estimate_wav: str) -> str:
    """One estimate, with what it was made from and what it should be."""
    mixture = load_audio(item.mixture_wav, duration=LONGEST)
    sounds: dict[str, Audio] = {"mixture": mixture}
    if estimate_wav and not score.error:
        sounds["estimate"] = load_audio(estimate_wav, duration=LONGEST)
    sounds["target"] = load_audio(item.target_wav, duration=LONGEST)
    figures = "\n".join(_sound(kind, audio, mixture) for kind, audio in sounds.items())
    return (
        f'<section class="item" data-item>\n<h3>{as_html(score.key)}</h3>\n{_facts(score)}\n{_item_table(score)}'
        f'<div class="sounds">\n{figures}\n</div>\n{_enrolment(item)}</section>'
    )


def _facts(score: ItemScore) -> str:
    facts = [f"speaker {as_html(score.speaker)}", f"{score.seconds:.2f} s"]
    if score.seconds > LONGEST:
        facts.append(f"the first {LONGEST:.0f} s are shown")
    if score.overlap is not None:
        facts.append(f"overlap {100 * score.overlap:.0f} %")
    facts += [as_html(score.genders)] * bool(score.genders)
    bad = []
    why = score.error or score.failures.get("si_sdr", "")
    if why:
        bad.append(as_html(why))
    if score.swapped:
        bad.append(f"nearer to speaker {as_html(score.nearest)}, by SI-SDR")
    if score.swapped_voice:
        bad.append(f"nearer to speaker {as_html(score.nearest_voice)}, by embedding")
    warning = f'\n<p class="bad">{"; ".join(bad)}</p>' if bad else ""
    return f"<p>{', '.join(facts)}</p>{warning}"


def _item_table(score: ItemScore) -> str:
    rows = [["", "mixture", "estimate", "improvement"]]
    for name, figure in FIGURES.items():
        each = score.measured.get(name)
        if each is not None and not name.startswith("levelled"):
            values = (each.mixture, each.estimate, each.improvement)
            rows.append([figure.heading, *("-" if v is None else f"{v:.{figure.decimals}f}" for v in values)])
    return _table("", rows).replace("<caption></caption>\n", "")


def _sound(kind: str, audio: Audio, mixture: Audio) -> str:
    """A spectrogram and a player."""
    name, size = HEADS[kind], min(len(audio.samples), len(mixture.samples))
    level = levelled(audio.samples[:size], mixture.samples[:size]) if kind == "estimate" else audio.samples
    picture = data_address("image/png", spectrogram_png(level, mixture))
    content, gain = _flac(audio)
    louder = f" (turned down by {-gain:.1f} dB)" if gain else ""
    return (
        f'<figure>\n<img src="{picture}" alt="Spectrogram: {name}">\n'
        f'<audio controls data-aligned="1" src="{data_address("audio/flac", content)}" aria-label="{name}"></audio>\n'
        f"<figcaption>{name}{louder}</figcaption>\n</figure>"
    )


def _enrolment(item: Item) -> str:
    """A player; a note where it cannot be read, since nothing was measured of it."""
    if not item.enrolment_wav:
        return ""
    try:
        content, _ = _flac(load_audio(item.enrolment_wav, duration=LONGEST))
    except AudioError as error:
        return f'<p class="note">Enrolment: {as_html(error)}</p>\n'
    address = data_address("audio/flac", content)
    return (
        f'<div class="enrolment note">Enrolment<audio controls src="{address}" aria-label="Enrolment"></audio></div>\n'
    )


def _flac(audio: Audio) -> tuple[bytes, float]:
    """The sound as 16-bit FLAC, and by how many dB (0 or less) it had to be turned down to fit."""
    peak = float(np.abs(audio.samples).max())
    gain = 0.999 / peak if peak > 1.0 else 1.0
    stream = io.BytesIO()
    soundfile.write(stream, audio.samples * gain, audio.rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue(), 20 * float(np.log10(gain))


def spectrogram_png(samples: Samples | npt.NDArray[np.float64], mixture: Audio) -> bytes:
    """PNG of the log spectrogram of (S,) at the mixture's rate, in dB below the peak of the mixture's."""
    from matplotlib import colormaps
    from PIL import Image

    peak = _spectrogram(mixture.samples, mixture.rate).max()
    power = np.maximum(_spectrogram(samples, mixture.rate), 1e-30) / max(peak, 1e-30)
    shades = np.clip(1 + 10 * np.log10(power) / RANGE, 0, 1)  # (rows, columns), low frequencies first
    palette = (255 * colormaps["magma"](np.linspace(0, 1, LEVELS))[:, :3]).round().astype(np.uint8)
    image = Image.fromarray(np.round(shades[::-1] * (LEVELS - 1)).astype(np.uint8), mode="P")
    image.putpalette(palette.tobytes())
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _spectrogram(samples: npt.NDArray[np.floating], rate: int) -> npt.NDArray[np.float64]:
    """Power (rows, columns) of frames spread evenly over the signal; each row is the loudest of its bins."""
    size = 2 * ROWS * max(1, round(WINDOW * rate / (2 * ROWS)))
    padded = np.pad(np.asarray(samples, np.float64), size // 2)
    hop = max(size // 4, -(-len(samples) // COLUMNS))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]  # (columns, size)
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)[:, 1:]) ** 2
    return power.reshape(len(frames), ROWS, -1).max(axis=2).T

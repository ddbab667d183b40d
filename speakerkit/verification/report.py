"""One web page of a test set: figures, plots, and the worst errors with their recordings; no scripts, no network."""

from __future__ import annotations

import io
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import TextIO
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import scipy

from speakerkit import __version__
from speakerkit.data.lists import command_of
from speakerkit.errors import DataError, one_line
from speakerkit.files import atomic_open
from speakerkit.verification.bootstrap import Bootstrap, TrialSpeakers, trial_speakers
from speakerkit.verification.calibration import stack_scores
from speakerkit.verification.metrics import FIGURES, VerificationMetrics, evaluate, figure_text
from speakerkit.verification.plots import plot_det, plot_histogram, plot_reliability, plot_roc, require_matplotlib
from speakerkit.verification.trials import Scores, Trials

FEW_SPEAKERS = 20  # below, a bootstrap over speakers is a rough one
DRAWING = "{http://www.w3.org/2000/svg}"
# Colours of the plots that are others on a dark page.
THEMED = {"#333333": "var(--ink)", "#000000": "var(--ink)", "#ffffff": "var(--paper)", "#e3e3e3": "var(--line)"}
MEANINGS = {
    "EER": "the share of errors at the threshold where misses (targets rejected) and false accepts (nontargets "
    "accepted) are equally frequent",
    "minDCF p": "the least cost over all thresholds where a share p of the trials are targets and both errors cost the "
    "same; 1 is what deciding blindly costs",
    "actDCF p": "the same at the threshold that log-likelihood ratios ask for; what it has above minDCF is bad "
    "calibration",
    "minCllr": "Cllr in bits after the best rising map of the scores: what calibration cannot mend",
    "Cllr": "the cost of log-likelihood ratios over all thresholds, in bits; 1 for a system that says nothing, more "
    "for one that misleads",
}
STYLE = """
:root{color-scheme:light dark;--ink:#22272c;--soft:#58616a;--paper:#ffffff;--line:#dfe3e6;--link:#0b57a4}
@media (prefers-color-scheme:dark){
:root{--ink:#e4e7ea;--soft:#a3acb5;--paper:#14181c;--line:#343b42;--link:#8cc4ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.5rem 1rem 4rem;font:1rem/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1,h2,h3{line-height:1.2;margin:2.2rem 0 .6rem}
h1{margin-top:0}
p,dl,ul{max-width:46rem}
.summary{font-size:1.1rem}
.note,figcaption,small,caption{color:var(--soft)}
a{color:var(--link)}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.5rem 0 1rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.4rem}
th,td{padding:.45rem .9rem .45rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody+tbody{border-top:2px solid var(--soft)}
.figures td,.figures thead th+th{text-align:right}
td small,td em{display:block;white-space:nowrap}
.errors td:first-child{white-space:nowrap}
.errors td{overflow-wrap:anywhere;min-width:5rem}
.errors a,.errors code{display:block}
audio{display:block;width:min(20rem,100%);height:2.2rem;margin-top:.3rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1.5rem}
figure{margin:0;max-width:34rem}
svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
dt{font-weight:600;margin-top:.5rem}
dd{margin:0}
code{overflow-wrap:anywhere}
@media print{
:root{color-scheme:light;--ink:#000000;--soft:#444444;--paper:#ffffff;--line:#cccccc;--link:#000000}
body{max-width:none;padding:0;font-size:10pt}
audio{display:none}
.wide{overflow:visible}
.plots{grid-template-columns:1fr 1fr}
figure,tr{break-inside:avoid}
h2,h3,caption{break-after:avoid}}
"""


@dataclass(frozen=True)
class Recordings:
    """What is known of the recordings of a test set beside their scores.

    Attributes:
        paths: audio file of an id, as ``wav.scp`` has it; commands are shown and never run.
        seconds: duration of an id.
        speakers: speaker of each id; ``None`` looks for them in the ids.
        source: the ``wav.scp``; error messages name it.
    """

    paths: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    speakers: Mapping[str, str] | None = None
    source: str = "wav.scp"


def measure(
    named: Mapping[str, Scores], recordings: Recordings, *, llr: bool = False
) -> dict[str, VerificationMetrics]:
    """The figures of each system, if all is there that a page of them needs.

    Args:
        named: labelled scores of each system on the same trials, by name.
        recordings: of these trials.
        llr: the scores are log-likelihood ratios (natural logarithm).

    Raises:
        DataError: as :func:`speakerkit.verification.metrics.evaluate`; lists of trials that differ; or none of the ids
            has a path where there are paths.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib("report")
    results = {name: evaluate(scores, llr=llr) for name, scores in named.items()}
    stack_scores(list(named.values()))
    trials = next(iter(named.values())).trials
    if recordings.paths and not recordings.paths.keys() & {*trials.enrol_ids, *trials.test_ids}:
        fault = f"lists none of the recordings of {trials.source}, such as {trials.test_ids[0]!r}"
        raise DataError(recordings.source, fault, "check that the two belong together")
    return results


def write_report(
    path: str | Path,
    named: Mapping[str, Scores],
    results: Mapping[str, VerificationMetrics],
    recordings: Recordings,
    *,
    drawn: Mapping[str, Bootstrap] | None = None,
    worst: int = 20,
    title: str = "",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the page, atomically; the same bytes for the same input, in whatever file of a folder.

    Args:
        path: HTML file.
        named: labelled scores of each system on the same trials; differences are to the first.
        results: from :func:`measure`; those with a Cllr are taken for log-likelihood ratios.
        recordings: as for :func:`measure`.
        drawn: bootstrap of each system with the same ``llr``, for intervals.
        worst: at most so many false accepts, and so many false rejects, of each system.
        title: heading, such as the test set's name.
        notes: further lines on how the page was made, such as the command.

    Raises:
        DataError: ids without speaker, or labels that contradict the speakers.
        MissingExtraError: matplotlib is not installed.
    """
    heading = _text(title or "Verification report")
    trials = next(iter(named.values())).trials
    speakers = trial_speakers(trials, recordings.speakers)
    folder = Path(path).absolute().parent
    parts = [
        f"<h1>{heading}</h1>",
        _summary(results, trials, speakers, recordings),
        _figures(results, drawn or {}),
        _plots(named, results),
        _worst_errors(named, results, worst, partial(_recording, recordings, folder)),
        _provenance(named, notes or {}),
    ]
    with atomic_open(path) as stream:
        stream.write(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # Nothing on the page is a script; should text of a list ever get through as one, it must not run.
            '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">\n'
            f"<title>{heading}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        )
        stream.writelines(f"{part}\n" for part in parts if part)
        stream.write("</main>\n</body>\n</html>\n")


def worst_errors(scores: Scores, threshold: float, count: int) -> tuple[list[int], list[int]]:
    """Rows of the trials that are most wrong when scores from ``threshold`` on are accepted.

    Args:
        scores: labelled.
        threshold: first score that is accepted.
        count: at most so many of each kind.

    Returns:
        nontargets that are accepted, highest score first, and targets that are rejected, lowest first; equal scores
        in the order of their ids.
    """
    labels = np.asarray(scores.trials.labels)
    accepted = scores.scores >= threshold
    return (
        _first(scores.trials, -scores.scores, accepted & ~labels, count),
        _first(scores.trials, scores.scores, ~accepted & labels, count),
    )


def _first(trials: Trials, values: npt.NDArray[np.float64], chosen: npt.NDArray[np.bool_], count: int) -> list[int]:
    """Rows of the ``count`` least values among the chosen."""
    rows = np.flatnonzero(chosen)
    if not count:
        return []
    if len(rows) > count:
        rows = rows[values[rows] <= np.partition(values[rows], count - 1)[count - 1]]

    def place(row: int) -> tuple[float, str, str]:
        return values[row], trials.enrol_ids[trials.enrol[row]], trials.test_ids[trials.test[row]]

    return sorted(rows.tolist(), key=place)[:count]


def _text(value: object) -> str:
    """Any text as it may stand in HTML, quoted attributes included."""
    return escape(one_line(str(value)))


def _summary(
    results: Mapping[str, VerificationMetrics], trials: Trials, speakers: TrialSpeakers | None, recordings: Recordings
) -> str:
    """What was measured, in plain words."""
    first = next(iter(results.values()))
    ids = {*trials.enrol_ids, *trials.test_ids}
    known = [recordings.seconds[key] for key in sorted(ids) if key in recordings.seconds]
    if speakers is None:
        of = "; who speaks in them is not known"
    else:
        of = f" of {speakers.count:,} speakers ({'by their ids' if recordings.speakers is None else 'by utt2spk'})"
    lasting = f", {sum(known) / 3600:.2f} hours in all" if len(known) == len(ids) else ""
    who = f"The system {_quoted(*results)} was" if len(results) == 1 else f"{len(results)} systems were"
    sentences = [
        f"{who} asked of {len(trials):,} pairs of recordings (trials) whether the two are of one speaker. In "
        f"{first.targets:,} they are (targets), in {first.nontargets:,} they are not (nontargets).",
        f"The trials name {len(ids):,} recordings or enrolments{of}{lasting}.",
        *_verdict(results),
    ]
    return f'<p class="summary">{" ".join(sentences)}</p>'


def _verdict(results: Mapping[str, VerificationMetrics]) -> Iterable[str]:
    ranked = sorted(results, key=lambda name: results[name].eer)
    best, last = ranked[0], ranked[-1]
    rate = {name: f"{figure_text('eer', results[name].eer)} %" for name in (best, last)}
    yield (
        f"Where it is set to make both kinds of error equally often, {_quoted(best)} errs in {rate[best]} of the "
        "trials of either kind (its equal error rate)"
        + (f"; {_quoted(last)}, the last of {len(ranked)}, in {rate[last]}." if len(ranked) > 1 else ".")
    )


def _quoted(name: str) -> str:
    return f"<q>{_text(name)}</q>"


def _figures(results: Mapping[str, VerificationMetrics], drawn: Mapping[str, Bootstrap]) -> str:
    """The table of error rates and costs, differences to the first system, and what they mean."""
    shown = [name for name in FIGURES if any(getattr(result, name) is not None for result in results.values())]
    head = "".join(f'<th scope="col">{_text(FIGURES[name][0])}</th>' for name in shown)
    bodies = ["".join(_system_row(name, result, shown, drawn.get(name)) for name, result in results.items())]
    baseline, *others = results
    if others:
        bodies.append("".join(_difference_row(results, baseline, other, shown, drawn) for other in others))
    caption = "Error rates and costs; less is better in all." + (" Small print: 95 % intervals." if drawn else "")
    body = "".join(f"<tbody>\n{rows}</tbody>\n" for rows in bodies)
    meanings = "".join(
        f"<dt>{name}</dt><dd>{meaning}</dd>\n"
        for name, meaning in MEANINGS.items()
        if any(FIGURES[figure][0].startswith(name.split()[0]) for figure in shown)
    )
    return (
        '<h2 id="figures">Figures</h2>\n<div class="wide" role="region" aria-labelledby="figures" tabindex="0">\n'
        f'<table class="figures"><caption>{caption}</caption>\n'
        f'<thead><tr><th scope="col">System</th>{head}</tr></thead>\n{body}</table>\n</div>\n'
        f'{_figure_notes(results, drawn)}<dl class="note">\n{meanings}</dl>'
    )


def _system_row(name: str, result: VerificationMetrics, shown: Sequence[str], drawn: Bootstrap | None) -> str:
    cells = []
    for figure in shown:
        around = drawn.interval(figure) if drawn else None
        span = (
            f" <small>{figure_text(figure, around.low)} to {figure_text(figure, around.high)}</small>" if around else ""
        )
        cells.append(f"<td>{figure_text(figure, getattr(result, figure))}{span}</td>")
    return f'<tr><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>\n'


def _difference_row(
    results: Mapping[str, VerificationMetrics],
    baseline: str,
    other: str,
    shown: Sequence[str],
    drawn: Mapping[str, Bootstrap],
) -> str:
    cells = []
    for figure in shown:
        value = _signed(figure, getattr(results[other], figure) - getattr(results[baseline], figure))
        verdict = ""
        if drawn:
            span = drawn[other].difference(drawn[baseline], figure)
            word = "better" if span.high < 0 else "worse" if span.low > 0 else "not told apart"
            verdict = f" <small>{_signed(figure, span.low)} to {_signed(figure, span.high)}</small> <em>{word}</em>"
        cells.append(f"<td>{value}{verdict}</td>")
    return f'<tr><th scope="row">{_text(other)} less {_text(baseline)}</th>{"".join(cells)}</tr>\n'


def _signed(figure: str, value: float) -> str:
    """A difference with its sign, and none where it rounds to zero."""
    text = figure_text(figure, value).lstrip("-")
    if not float(text):
        return text
    return f"−{text}" if value < 0 else f"+{text}"


def _figure_notes(results: Mapping[str, VerificationMetrics], drawn: Mapping[str, Bootstrap]) -> str:
    notes = []
    if drawn:
        one = next(iter(drawn.values()))
        note = f"Intervals from {len(one.replicates['eer']):,} draws of the {one.units:,} {one.unit} with replacement."
        if one.unit == "trials":
            note += " Speakers are not known, so single trials were drawn: the intervals are too narrow."
        elif one.units < FEW_SPEAKERS:
            note += " So few speakers make them rough."
        notes.append(note)
    elif len(results) > 1:
        notes.append("Without intervals (--bootstrap 1000) there is no telling whether a difference means anything.")
    if all(result.cllr is None for result in results.values()):
        notes.append(
            "actDCF, Cllr and the reliability plot mean something for log-likelihood ratios only, and are shown where "
            "the scores are said to be such (--llr)."
        )
    return "".join(f'<p class="note">{note}</p>\n' for note in notes)


def _plots(named: Mapping[str, Scores], results: Mapping[str, VerificationMetrics]) -> str:
    named = {one_line(name): scores for name, scores in named.items()}  # other characters break an SVG
    systems = ", ".join(named)
    plots: list[tuple[Callable[[TextIO], None], str, str]] = [
        (
            partial(plot_det, named),
            f"DET plot of {systems}",
            "Misses against false accepts at every threshold; nearer to the lower left is better, dots are the EER.",
        ),
        (
            partial(plot_roc, named),
            f"ROC plot of {systems}",
            "Targets accepted against nontargets accepted at every threshold; nearer to the upper left is better.",
        ),
    ]
    if any(result.cllr is not None for result in results.values()):
        reliability = (
            "Share of targets found where log-likelihood ratios promise a share; calibrated ratios lie on the "
            "diagonal, below it they promise too much."
        )
        plots.append((partial(plot_reliability, named), f"Reliability plot of {systems}", reliability))
    for name, scores in named.items():
        histogram = partial(plot_histogram, scores, title=f"Scores of {name}")
        plots.append((histogram, f"Score histogram of {name}", "The less the two overlap, the better."))
    figures = "\n".join(_figure(f"p{number}-", *plot) for number, plot in enumerate(plots))
    return f'<h2>Plots</h2>\n<div class="plots">\n{figures}\n</div>'


def _figure(prefix: str, draw: Callable[[TextIO], None], label: str, caption: str) -> str:
    stream = io.StringIO()
    draw(stream)
    picture = inline_svg(stream.getvalue(), prefix, label)
    return f"<figure>\n{picture}\n<figcaption>{caption}</figcaption>\n</figure>"


def inline_svg(svg: str, prefix: str, label: str) -> str:
    """A picture of matplotlib's as part of an HTML page: small, in the page's colours, with ids of its own.

    Args:
        svg: the file's text.
        prefix: in front of its ids, which must differ among the pictures of a page.
        label: what is read out in place of the picture.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - we have just drawn it; comments, which hold names, are dropped
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{DRAWING}metadata", f"{DRAWING}style")]:
            parent.remove(child)
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg))
    for element in root.iter():
        element.tag = element.tag.removeprefix(DRAWING)
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib = {
            name: _attribute(name, value, prefix) for name, value in attributes.items() if name != "id" or value in used
        }
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "role": "img", "aria-label": one_line(label)}
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "d":  # a hundredth of a point is not seen
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value)
    if name == "style":
        value = re.sub(r"#[0-9a-f]{6}", lambda colour: THEMED.get(colour[0], colour[0]), value)
    return re.sub(r"^#|(?<=url\()#", f"#{prefix}", value) if name in ("href", "clip-path") else value


def _worst_errors(
    named: Mapping[str, Scores],
    results: Mapping[str, VerificationMetrics],
    count: int,
    cell: Callable[[str], str],
) -> str:
    if not count:
        return ""
    parts = ["<h2>Worst errors</h2>"]
    for name, scores in named.items():
        result, trials = results[name], scores.trials
        labels = np.asarray(trials.labels)
        accepted = scores.scores >= result.eer_threshold
        false_accepts, false_rejects = worst_errors(scores, result.eer_threshold, count)
        parts.append(
            f"<h3>{_text(name)}</h3>\n<p>At its EER it accepts scores from {result.eer_threshold:.4g} on: "
            f"{np.sum(accepted & ~labels):,} of {result.nontargets:,} nontargets, and all but "
            f"{np.sum(~accepted & labels):,} of {result.targets:,} targets.</p>"
        )
        for what, rows in (("False accepts, highest scores", false_accepts), ("False rejects, lowest", false_rejects)):
            parts.append(_error_table(f"{what} first", scores, rows, cell))
    return "\n".join(parts)


def _error_table(caption: str, scores: Scores, rows: Sequence[int], cell: Callable[[str], str]) -> str:
    trials = scores.trials
    body = "".join(
        f"<tr><td>{scores.scores[row]:.6g}</td><td>{cell(trials.enrol_ids[trials.enrol[row]])}</td>"
        f"<td>{cell(trials.test_ids[trials.test[row]])}</td></tr>\n"
        for row in rows
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Score", "Enrolment", "Test"))
    none = "" if rows else '<tr><td colspan="3">none</td></tr>\n'
    return (
        f'<div class="wide"><table class="errors"><caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}{none}</tbody></table></div>"
    )


def _recording(recordings: Recordings, folder: Path, key: str) -> str:
    """The id with what is known of it, and a player where its file is there."""
    facts = []
    if recordings.speakers is not None:
        facts.append(f"speaker {_text(recordings.speakers[key])}")
    if key in recordings.seconds:
        facts.append(f"{recordings.seconds[key]:.2f} s")
    head = f"<strong>{_text(key)}</strong>" + (f" <small>{', '.join(facts)}</small>" if facts else "")
    path = recordings.paths.get(key)
    if path is None:
        return head
    if command_of(path) or not os.path.isfile(path):
        why = "a command" if command_of(path) else "no such file"
        return f"{head}<code>{_text(path)}</code> ({why})"
    link = escape(_link(path, folder))
    return (
        f'{head}<a href="{link}">{_text(path)}</a>'
        f'<audio controls preload="none" src="{link}" aria-label="{_text(key)}"></audio>'
    )


def _link(path: str, folder: Path) -> str:
    """Address of a local file: a whole one where the list has a whole path, else from the page's folder."""
    return Path(path).as_uri() if os.path.isabs(path) else quote(Path(os.path.relpath(path, folder)).as_posix())


def _provenance(named: Mapping[str, Scores], notes: Mapping[str, str]) -> str:
    import matplotlib as mpl

    versions = {
        "speakerkit": __version__,
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "matplotlib": mpl.__version__,
    }
    rows = {f"Scores of {name}": scores.trials.source for name, scores in named.items()}
    rows |= {**notes, "Versions": ", ".join(f"{name} {version}" for name, version in versions.items())}
    lines = "".join(f"<dt>{_text(what)}</dt><dd><code>{_text(value)}</code></dd>\n" for what, value in rows.items())
    return f"<h2>How this was made</h2>\n<dl>\n{lines}</dl>"

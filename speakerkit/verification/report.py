"""One web page of a test set: figures, plots, and the worst errors with their recordings; no scripts, no network."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from speakerkit.data.lists import command_of
from speakerkit.errors import DataError, one_line
from speakerkit.pages import as_html, file_link, inline_svg, provenance, write_page
from speakerkit.pictures import require_matplotlib
from speakerkit.verification.bootstrap import Bootstrap, TrialSpeakers, trial_speakers
from speakerkit.verification.calibration import stack_scores
from speakerkit.verification.metrics import FIGURES, VerificationMetrics, evaluate, figure_text
from speakerkit.verification.plots import plot_det, plot_histogram, plot_reliability, plot_roc
from speakerkit.verification.trials import Scores, Trials

FEW_SPEAKERS = 20  # below, a bootstrap over speakers is a rough one
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
td small,td em{display:block;white-space:nowrap}
.errors td:first-child{white-space:nowrap}
.errors td{overflow-wrap:anywhere;min-width:5rem}
.errors a,.errors code{display:block}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1.5rem}
figure{margin:0;max-width:34rem}
svg *{stroke-linejoin:round;stroke-linecap:butt}
@media print{.plots{grid-template-columns:1fr 1fr}}
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
    trials = next(iter(named.values())).trials
    speakers = trial_speakers(trials, recordings.speakers)
    folder = Path(path).absolute().parent
    parts = [
        _summary(results, trials, speakers, recordings),
        _figures(results, drawn or {}),
        _plots(named, results),
        _worst_errors(named, results, worst, partial(_recording, recordings, folder)),
        _provenance(named, notes or {}),
    ]
    write_page(path, title or "Verification report", parts, style=STYLE)


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
    return f"<q>{as_html(name)}</q>"


def _figures(results: Mapping[str, VerificationMetrics], drawn: Mapping[str, Bootstrap]) -> str:
    """The table of error rates and costs, differences to the first system, and what they mean."""
    shown = [name for name in FIGURES if any(getattr(result, name) is not None for result in results.values())]
    head = "".join(f'<th scope="col">{as_html(FIGURES[name][0])}</th>' for name in shown)
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
    return f'<tr><th scope="row">{as_html(name)}</th>{"".join(cells)}</tr>\n'


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
    return f'<tr><th scope="row">{as_html(other)} less {as_html(baseline)}</th>{"".join(cells)}</tr>\n'


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
            f"<h3>{as_html(name)}</h3>\n<p>At its EER it accepts scores from {result.eer_threshold:.4g} on: "
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
        facts.append(f"speaker {as_html(recordings.speakers[key])}")
    if key in recordings.seconds:
        facts.append(f"{recordings.seconds[key]:.2f} s")
    head = f"<strong>{as_html(key)}</strong>" + (f" <small>{', '.join(facts)}</small>" if facts else "")
    path = recordings.paths.get(key)
    if path is None:
        return head
    if command_of(path) or not os.path.isfile(path):
        why = "a command" if command_of(path) else "no such file"
        return f"{head}<code>{as_html(path)}</code> ({why})"
    link = escape(file_link(path, folder))
    return (
        f'{head}<a href="{link}">{as_html(path)}</a>'
        f'<audio controls preload="none" src="{link}" aria-label="{as_html(key)}"></audio>'
    )


def _provenance(named: Mapping[str, Scores], notes: Mapping[str, str]) -> str:
    rows = {f"Scores of {name}": scores.trials.source for name, scores in named.items()}
    return provenance({**rows, **notes}, ("numpy", "scipy", "matplotlib"))

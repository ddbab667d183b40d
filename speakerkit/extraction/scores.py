"""What scores of extracted voices say: one by one, pooled, and by overlap, genders and number of voices."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speakerkit.data.lists import read_lines
from speakerkit.errors import DataError
from speakerkit.intervals import Interval, mean_interval
from speakerkit.tables import text_table

PERFECT = 60.0  # dB: a mixture as near as this is the target but for rounding, as where it speaks alone
WELL = 1.0  # dB: an improvement below is a failed extraction
DECIMALS = 6  # of what is kept
OVERLAPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # edges of the groups, behind that without any


@dataclass(frozen=True)
class Figure:
    """How a figure is shown: its name, and decimals."""

    heading: str
    decimals: int = 2


METRICS = ("si-sdr", "sdr", "stoi", "estoi", "pesq")
FIGURES = {
    "si_sdr": Figure("SI-SDR dB"),
    "sdr": Figure("SDR dB"),
    "stoi": Figure("STOI", 3),
    "estoi": Figure("ESTOI", 3),
    "pesq": Figure("PESQ"),
    "si_sdr_ss": Figure("SI-SDR dB, target and others speak (SS)"),
    "si_sdr_sq": Figure("SI-SDR dB, target alone speaks (SQ)"),
    "power_qq": Figure("power dB/s, nobody speaks (QQ)"),
    "power_qs": Figure("power dB/s, others speak (QS)"),
    "power_quiet": Figure("power dB/s, target quiet (QQ and QS)"),
    "levelled_qq": Figure("the same at the mixture's level (QQ)"),
    "levelled_qs": Figure("the same at the mixture's level (QS)"),
    "levelled_quiet": Figure("the same at the mixture's level (QQ and QS)"),
    "leakage": Figure("output over mixture dB, target absent"),
}


@dataclass(frozen=True)
class Measured:
    """A figure of one item: of its mixture as it is, and of the estimate."""

    mixture: float
    estimate: float

    @property
    def improvement(self) -> float | None:
        """What the estimate has above the mixture; ``None`` where there is nothing to improve (``PERFECT``)."""
        return None if self.mixture >= PERFECT else round(self.estimate - self.mixture, DECIMALS)


@dataclass(frozen=True)
class ItemScore:
    """What one estimate is worth.

    Attributes:
        key: MIXTURE-SPEAKER.
        mixture: id.
        speaker: whose voice is wanted.
        seconds: of the mixture.
        present: whether the target speaks in it.
        speakers: voices in the mixture, by its references and its turns.
        overlap: share of the speech in which two or more speak; ``None`` without turns.
        genders: of the voices in the mixture, sorted, such as "F+M"; "" where one is not known.
        measured: figures by the names of :data:`FIGURES`.
        failures: why a figure could not be measured, by its name.
        error: why there is no estimate to measure, or "".
        nearest: speaker whose voice the estimate is nearest to by SI-SDR; "" where no other voice is known.
        nearest_voice: the same by the cosine of embeddings.
    """

    key: str
    mixture: str
    speaker: str
    seconds: float
    present: bool = True
    speakers: int = 1
    overlap: float | None = None
    genders: str = ""
    measured: Mapping[str, Measured] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    nearest: str = ""
    nearest_voice: str = ""

    @property
    def swapped(self) -> bool | None:
        """Whether the estimate is nearer to another voice of the mixture than to the target's, by SI-SDR."""
        return self.nearest != self.speaker if self.nearest else None

    @property
    def swapped_voice(self) -> bool | None:
        """The same by the cosine of embeddings."""
        return self.nearest_voice != self.speaker if self.nearest_voice else None

    @property
    def improvement(self) -> float | None:
        """SI-SDRi in dB, if there is one."""
        found = self.measured.get("si_sdr")
        return None if found is None else found.improvement

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        figures = {
            name: {"mixture": each.mixture, "estimate": each.estimate, "improvement": each.improvement}
            for name, each in self.measured.items()
        }
        told = {"swapped": self.swapped, "swapped_voice": self.swapped_voice}
        return {**plain, "measured": figures, "failures": dict(self.failures), **told}


@dataclass(frozen=True)
class Mean:
    """Mean and median of a figure over ``count`` items; an interval where one was asked for."""

    mean: float
    median: float
    count: int
    interval: Interval | None = None


@dataclass(frozen=True)
class Summary:
    """A figure over a group of items.

    Attributes:
        mixture: of the mixtures.
        estimate: of the estimates.
        improvement: of the differences; ``None`` where there are none.
        failed: items of which it could not be measured; they are in none of the means.
    """

    mixture: Mean | None
    estimate: Mean | None
    improvement: Mean | None
    failed: int


@dataclass(frozen=True)
class Share:
    """So many of so many items."""

    count: int
    of: int

    @property
    def rate(self) -> float | None:
        """In [0, 1]; ``None`` of nothing."""
        return self.count / self.of if self.of else None


@dataclass(frozen=True)
class ExtractionScore:
    """What a set of estimates is worth.

    Attributes:
        items: sorted by key.
        replicates: draws of the speakers for intervals; 0 for none.
        seed: of the draws.
    """

    items: tuple[ItemScore, ...]
    replicates: int = 0
    seed: int = 0

    @property
    def errors(self) -> tuple[ItemScore, ...]:
        """Items without an estimate that can be measured."""
        return tuple(item for item in self.items if item.error)

    def summary(self, figure: str, items: Sequence[ItemScore] | None = None) -> Summary:
        """A figure over all items, or over some."""
        chosen = self.items if items is None else items
        found = [(item.speaker, item.measured[figure]) for item in chosen if figure in item.measured]

        def mean(pick: Callable[[Measured], float | None]) -> Mean | None:
            rows = [(speaker, value) for speaker, each in found if (value := pick(each)) is not None]
            if not rows:
                return None
            values = np.array([value for _, value in rows])
            units = [speaker for speaker, _ in rows]
            around = mean_interval(values, units, self.replicates, self.seed) if self.replicates else None
            return Mean(float(values.mean()), float(np.median(values)), len(rows), around)

        return Summary(
            mean(lambda each: each.mixture),
            mean(lambda each: each.estimate),
            mean(lambda each: each.improvement),
            sum(figure in item.failures for item in chosen),
        )

    def shares(self, items: Sequence[ItemScore] | None = None) -> dict[str, Share]:
        """Items not improved by ``WELL`` dB, those that failed among them; and swaps, where they can be told."""
        chosen = self.items if items is None else items
        present = [item for item in chosen if item.present and not _is_perfect(item)]
        poor = sum(item.improvement is None or item.improvement < WELL for item in present)
        shares = {"not_improved": Share(poor, len(present))}
        for name in ("swapped", "swapped_voice"):
            told = [value for item in chosen if (value := getattr(item, name)) is not None]
            shares[name] = Share(sum(told), len(told))
        return shares

    def groups(self) -> dict[str, tuple[ItemScore, ...]]:
        """Items with a present target by overlap, by genders and by the number of voices, where these are known."""
        named: dict[tuple[int, str], list[ItemScore]] = {}
        for item in self.items:
            if not item.present:
                continue
            if item.overlap is not None:
                bin_ = int(np.searchsorted(OVERLAPS, item.overlap))
                span = f"{100 * OVERLAPS[bin_ - 1]:.0f} to {100 * OVERLAPS[bin_]:.0f} %" if bin_ else "none"
                named.setdefault((bin_, f"overlap {span}"), []).append(item)
            if item.genders:
                named.setdefault((100, f"genders {item.genders}"), []).append(item)
            named.setdefault((200 + item.speakers, f"{item.speakers} speaker{'s' * (item.speakers > 1)}"), []).append(
                item
            )
        return {name: tuple(named[order, name]) for order, name in sorted(named)}

    def figures(self) -> list[str]:
        """Names of what was measured or failed, in the order of :data:`FIGURES`."""
        return [name for name in FIGURES if any(name in {**each.measured, **each.failures} for each in self.items)]

    def worst(self, count: int) -> tuple[ItemScore, ...]:
        """Items with the least SI-SDR improvement, those without any first."""
        present = [item for item in self.items if item.present]
        return tuple(sorted(present, key=_badness)[:count])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: dB, shares in [0, 1]."""
        return {
            "count": len(self.items),
            "absent": sum(not item.present for item in self.items),
            "errors": len(self.errors),
            "replicates": self.replicates,
            "seed": self.seed,
            "figures": {name: _summary_dict(self.summary(name)) for name in self.figures()},
            "shares": _shares_dict(self.shares()),
            "groups": {
                name: {
                    "count": len(items),
                    "figures": {figure: _summary_dict(self.summary(figure, items)) for figure in self.figures()},
                    "shares": _shares_dict(self.shares(items)),
                }
                for name, items in self.groups().items()
            },
            "items": [item.to_dict() for item in self.items],
        }

    def table(self) -> str:
        """Figures of mixture and estimate, shares, and the groups, as plain text."""
        return "\n\n".join(
            text_table(rows) for rows in (self.figure_rows(), self.share_rows(), self.group_rows()) if len(rows) > 1
        )

    def figure_rows(self) -> list[list[str]]:
        """A row a figure, below the heading."""
        rows = [["mean of", "mixture", "estimate", "improvement", "median", "items", "failed"]]
        if self.replicates:
            rows[0].insert(4, "95 % interval")
        for name in self.figures():
            decimals, found = FIGURES[name].decimals, self.summary(name)
            gained, count = found.improvement, found.estimate.count if found.estimate else 0
            partly = f" ({gained.count})" if gained and gained.count != count else ""
            row = [
                FIGURES[name].heading,
                *(_mean(each, decimals) for each in (found.mixture, found.estimate)),
                _mean(gained, decimals) + partly,
                _shown(gained.median if gained else None, decimals),
                str(count),
                str(found.failed),
            ]
            if self.replicates:
                row.insert(4, _span(gained.interval if gained else None, decimals))
            rows.append(row)
        return rows

    def share_rows(self) -> list[list[str]]:
        """A row a share, below the heading."""
        headings = {
            "not_improved": f"SI-SDR improved by less than {WELL:g} dB, or failed",
            "swapped": "swapped: nearer to another voice, by SI-SDR",
            "swapped_voice": "swapped: nearer to another voice, by embedding",
        }
        rows = [["share", "%", "items", "of"]]
        for name, share in self.shares().items():
            if share.rate is not None:
                rows.append([headings[name], f"{100 * share.rate:.1f}", str(share.count), str(share.of)])
        return rows

    def group_rows(self) -> list[list[str]]:
        """A row a group, below the heading: mean improvements, and shares in per cent."""
        figures = [name for name in self.figures() if name.replace("_", "-") in METRICS]
        heads = [f"{FIGURES[name].heading.removesuffix(' dB')}i" for name in figures]
        told = [name for name, share in self.shares().items() if share.of]
        names = {"not_improved": f"under {WELL:g} dB %", "swapped": "swapped %", "swapped_voice": "by embedding %"}
        rows = [["improvement", *heads, *(names[name] for name in told), "items"]]
        for name, items in self.groups().items():
            gains = [(self.summary(figure, items).improvement, FIGURES[figure].decimals) for figure in figures]
            shares = self.shares(items)
            rates = [_shown(None if (rate := shares[each].rate) is None else 100 * rate, 1) for each in told]
            cells = [_mean(gain, decimals) for gain, decimals in gains]
            rows.append([name, *cells, *rates, str(len(items))])
        return rows


def _is_perfect(item: ItemScore) -> bool:
    """Whether its mixture is the target already, so that there is nothing to improve."""
    return "si_sdr" in item.measured and item.improvement is None


def _badness(item: ItemScore) -> tuple[int, float, str]:
    gain = item.improvement
    return (0, 0.0, item.key) if gain is None and not _is_perfect(item) else (1, gain or 0.0, item.key)


def _shown(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _mean(found: Mean | None, decimals: int) -> str:
    return _shown(found.mean if found else None, decimals)


def _span(interval: Interval | None, decimals: int) -> str:
    return "-" if interval is None else f"{interval.low:.{decimals}f} to {interval.high:.{decimals}f}"


def _summary_dict(summary: Summary) -> dict[str, Any]:
    def mean(found: Mean | None) -> dict[str, Any] | None:
        if found is None:
            return None
        span = None if found.interval is None else [round(each, DECIMALS) for each in vars(found.interval).values()]
        rounded = {"mean": round(found.mean, DECIMALS), "median": round(found.median, DECIMALS), "count": found.count}
        return {**rounded, **({"interval": span} if span else {})}

    parts = {name: mean(getattr(summary, name)) for name in ("mixture", "estimate", "improvement")}
    return {**parts, "failed": summary.failed}


def _shares_dict(shares: Mapping[str, Share]) -> dict[str, Any]:
    return {name: {"count": share.count, "of": share.of, "rate": share.rate} for name, share in shares.items()}


def read_scores(path: str | Path) -> ExtractionScore:
    """Scores of a file that :meth:`ExtractionScore.to_dict` went into.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    known = [name for name in ItemScore.__dataclass_fields__ if name != "measured"]
    try:
        report = json.loads("\n".join(read_lines(path)))
        items = tuple(
            ItemScore(**{name: row[name] for name in known}, measured=_measured(row["measured"]))
            for row in report["items"]
        )
        return ExtractionScore(items, int(report["replicates"]), int(report["seed"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        fault = f"holds no scores of extraction ({type(error).__name__}: {error})"
        raise DataError(path, fault, "make it with: score extraction --json") from None


def _measured(row: Mapping[str, Any]) -> dict[str, Measured]:
    return {
        name: Measured(float(row[name]["mixture"]), float(row[name]["estimate"])) for name in FIGURES if name in row
    }

"""The results table of an extraction recipe: the mixtures as they are, and what the model makes of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from results import fact_lines, run_facts

from speakerkit.bundle import CONFIG
from speakerkit.config import read_yaml, write_yaml
from speakerkit.extraction.scores import FIGURES, METRICS
from speakerkit.files import write_json, write_lines
from speakerkit.tables import text_table

POOLED = ("figures", "shares")
SHARES = {"not_improved": "under 1 dB %", "swapped": "swapped %"}


def main() -> None:
    """Write ``results.txt`` and ``results.json`` of ``scores/scores.json``, and the figures into the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exp_dir", type=Path)
    parser.add_argument("--label", required=True, help="of the test set")
    parser.add_argument("--told-by", default="enrolment", help="what says which voice is wanted")
    parser.add_argument("--command", required=True, help="that ran the recipe")
    options = parser.parse_args()
    exp_dir: Path = options.exp_dir
    scores = _scores(exp_dir)
    complete = _scores(exp_dir / "complete") if (exp_dir / "complete" / "scores").is_dir() else None
    model = read_yaml(exp_dir / "bundle" / CONFIG)
    facts = {"corpus": options.label, "told_by": options.told_by, **run_facts(exp_dir), "recipe": options.command}
    systems = {facts["model"]: scores, **({f"{facts['model']}, complete": complete} if complete else {})}
    kept = {"scores": _kept(scores), "complete": complete and _kept(complete)}
    write_json(exp_dir / "results.json", {**facts, **kept})
    lines = [f"results on {options.label}", "", _table(systems), "", _groups(scores), ""]
    lines += ["complete: told that the voices are all that is heard, and all of them", ""] if complete else []
    lines += [f"{scores['count']} voices, told by: {options.told_by}; {scores['errors']} could not be scored"]
    write_lines(exp_dir / "results.txt", [*lines, *fact_lines(facts), f"command: {options.command}"])
    model["results"] = {options.label: {"told_by": options.told_by, **{name: scores[name] for name in POOLED}}}
    write_yaml(exp_dir / "bundle" / CONFIG, model)


def _scores(folder: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((folder / "scores" / "scores.json").read_text(encoding="utf-8"))
    return scores


def _kept(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: scores[name] for name in ("count", "absent", "errors", *POOLED, "groups")}


def _measured(scores: dict[str, Any]) -> list[str]:
    return [name for name in scores["figures"] if name.replace("_", "-") in METRICS]


def _table(systems: dict[str, dict[str, Any]]) -> str:
    """A row of the mixtures, by which nothing is improved, and one of each system."""
    mixtures = next(iter(systems.values()))
    names = _measured(mixtures)
    head = ["system", *(FIGURES[name].heading for name in names), "SI-SDRi", "95 % interval", "SDRi", *SHARES.values()]
    rows = [head]
    rows.append(["mixture", *(_value(mixtures, name, "mixture") for name in names), "0.00", "-", "0.00", "-", "-"])
    for system, scores in systems.items():
        row = [system, *(_value(scores, name, "estimate") for name in names)]
        row += [_value(scores, "si_sdr", "improvement"), _interval(scores), _value(scores, "sdr", "improvement")]
        rows.append([*row, *(_percent(scores["shares"][name]["rate"]) for name in SHARES)])
    return text_table(rows)


def _groups(scores: dict[str, Any]) -> str:
    """Improvements of the model by overlap, genders and number of voices."""
    rows = [["improvement", "SI-SDRi", "SDRi", *SHARES.values(), "voices"]]
    for name, group in scores["groups"].items():
        gains = [_value(group, figure, "improvement") for figure in ("si_sdr", "sdr")]
        rates = [_percent(group["shares"][share]["rate"]) for share in SHARES]
        rows.append([name, *gains, *rates, str(group["count"])])
    return text_table(rows)


def _value(scores: dict[str, Any], figure: str, side: str) -> str:
    found = scores["figures"].get(figure, {}).get(side)
    return "-" if found is None else f"{found['mean']:.{FIGURES[figure].decimals}f}"


def _interval(scores: dict[str, Any]) -> str:
    found = (scores["figures"].get("si_sdr", {}).get("improvement") or {}).get("interval")
    return "-" if found is None else f"{found[0]:.2f} to {found[1]:.2f}"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f}"


if __name__ == "__main__":
    main()

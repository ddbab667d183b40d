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
    scores = json.loads((exp_dir / "scores" / "scores.json").read_text(encoding="utf-8"))
    model = read_yaml(exp_dir / "bundle" / CONFIG)
    facts = {"corpus": options.label, "told_by": options.told_by, **run_facts(exp_dir), "recipe": options.command}
    kept = {name: scores[name] for name in ("count", "absent", "errors", "figures", "shares", "groups")}
    write_json(exp_dir / "results.json", {**facts, "scores": kept})
    lines = [f"results on {options.label}", "", _table(facts["model"], scores), "", _groups(scores), ""]
    lines += [f"{scores['count']} voices, told by: {options.told_by}; {scores['errors']} could not be scored"]
    write_lines(exp_dir / "results.txt", [*lines, *fact_lines(facts), f"command: {options.command}"])
    pooled = {"told_by": options.told_by, "figures": kept["figures"], "shares": kept["shares"]}
    model["results"] = {options.label: pooled}
    write_yaml(exp_dir / "bundle" / CONFIG, model)


def _measured(scores: dict[str, Any]) -> list[str]:
    return [name for name in scores["figures"] if name.replace("_", "-") in METRICS]


def _table(model: str, scores: dict[str, Any]) -> str:
    """A row of the mixtures, by which nothing is improved, and one of the model."""
    names = _measured(scores)
    head = ["system", *(FIGURES[name].heading for name in names), "SI-SDRi", "95 % interval", "SDRi", *SHARES.values()]
    rows = [head]
    for system, side in (("mixture", "mixture"), (model, "estimate")):
        row = [system, *(_value(scores, name, side) for name in names)]
        if side == "mixture":
            row += ["0.00", "-", "0.00", "-", "-"]
        else:
            row += [_value(scores, "si_sdr", "improvement"), _interval(scores), _value(scores, "sdr", "improvement")]
            row += [_percent(scores["shares"][name]["rate"]) for name in SHARES]
        rows.append(row)
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

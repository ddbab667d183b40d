"""Did an embedding recipe leave everything it should, and an EER below a limit? Exits 2 where not."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ARTEFACTS = (
    "config.yaml",
    "provenance.json",
    "train.log",
    "det.png",
    "results.txt",
    "report.html",
    "bundle/config.yaml",
    "bundle/model.safetensors",
    "bundle/model.onnx",
    "bundle/calibration.json",
    "embeddings/test.scp",
    "embeddings/test_onnx.scp",
)


def main() -> int:
    """Check one experiment folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exp_dir", type=Path)
    parser.add_argument("--max-eer", type=float, required=True, help="percent, of plain cosine scores")
    options = parser.parse_args()
    missing = [name for name in ARTEFACTS if not (options.exp_dir / name).is_file()]
    if missing:
        print(f"check_recipe: {options.exp_dir} lacks {', '.join(missing)}", file=sys.stderr)
        return 2
    results = json.loads((options.exp_dir / "results.json").read_text(encoding="utf-8"))
    eer = 100 * results["scores"]["trials_cosine"]["eer"]
    print(f"{results['corpus']}: EER {eer:.2f} %, limit {options.max_eer:.2f} %")
    return 0 if eer <= options.max_eer else 2


if __name__ == "__main__":
    sys.exit(main())

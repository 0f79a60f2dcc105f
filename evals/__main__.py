"""One evaluation of one encoder's features: ``python -m evals NAME --features F --out JSON``."""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

from evals import load, names, read_about, read_features
from ijepa.errors import UserError, run_command
from ijepa.files import digest, write_json
from ijepa.provenance import here
from ijepa.strict import strict


def evaluate(name: str, raw: dict[str, Any], features: Path, out: Path) -> None:
    """Write one result: metric, n, 95 % interval (Wilson), protocol, and its provenance."""
    module = load(name)
    config = strict(module.Config, raw, f"evaluations.{name}")
    about = read_about(features)
    begun = time.perf_counter()
    result = module.evaluate(
        config, read_features(features, "train"), read_features(features, "test")
    )
    right, n = int(result.correct.sum()), len(result.correct)
    write_json(
        out,
        {
            "evaluation": name,
            "dataset": about["dataset"],
            "split": "test",
            "metric": "top1",
            "value": right / n,
            "n": n,
            "interval": [round(end, 5) for end in wilson(right, n)],
            "protocol": dataclasses.asdict(config),
            "chosen": result.chosen,
            "seconds": round(time.perf_counter() - begun, 2),
            "features": digest(features)[:12],
            "about": about,
            **here(),
        },
    )


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927); scipy.stats takes seconds to import."""
    z = NormalDist().inv_cdf(0.975)
    middle = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return middle - half, middle + half


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals", description=__doc__)
    parser.add_argument("name", help=f"one of {', '.join(names())}")
    parser.add_argument("--features", type=Path, required=True, help="file of evals.features")
    parser.add_argument("--config", default="{}", help="settings that differ, as JSON")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    options = parser.parse_args()
    try:
        raw = json.loads(options.config)
    except json.JSONDecodeError as error:
        raise UserError(f"--config is not JSON: {error}") from None
    evaluate(options.name, raw, options.features, options.out)


if __name__ == "__main__":
    run_command(main)

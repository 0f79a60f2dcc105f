"""Run all evaluations that use an encoder's stored features of a data set, in one process.

``python -m evals.group PLAN.yaml ENCODER --data SHARDS ...`` extracts the features once and runs
the evaluations of the plan on them, one after the other. torch is imported once, timm only if
features are missing. A plan has ``evaluations``, each with name, evaluation, label and config, and
``images``, the number of images to use by split, where not all are. The plans of a config are in
work/NAME/plan/HASH/evaluations.
"""

import argparse
from pathlib import Path

from ijepa.data.shards import check_limit
from ijepa.encoder_file import PIXELS
from ijepa.errors import UserError, program, run_command
from ijepa.files import read_yaml
from ijepa.strict import strict


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog=program("evals.group"), description=__doc__)
    parser.add_argument("plan", type=Path, help="YAML file of evaluations")
    parser.add_argument("encoder", help="encoder file, or the word pixels")
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--features", type=Path, required=True, help="about.json of the features")
    parser.add_argument("--results", type=Path, required=True, help="folder for NAME.json")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for checkpoints of interrupted evaluations"
    )
    parser.add_argument(
        "--done", type=Path, required=True, help="completion marker, written after all results"
    )
    options = parser.parse_args()
    # Not at the top: torch takes seconds to import, and --help does not need it.
    from evals.run import Plan, evaluate_group, write_done

    raw = read_yaml(options.plan)
    if not isinstance(raw, dict):
        raise UserError(f"{options.plan} must hold evaluations and images")
    plan = strict(Plan, raw, str(options.plan))
    check_limit(plan.images, options.data)
    evaluate_group(
        plan.evaluations,
        None if options.encoder == PIXELS else Path(options.encoder),
        options.data,
        options.features,
        options.results,
        options.work,
        plan.images,
    )
    write_done(options.done, plan.evaluations)


if __name__ == "__main__":
    run_command(main)

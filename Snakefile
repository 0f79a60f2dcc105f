# From real images to a results table. Try: make reproduce, or snakemake --profile workflow/profiles/local
# Another scale: --configfile config/hour.yaml

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")


# A config is taken whole: over a default underneath, --configfile would merge, and a network's
# size would be half the user's and half mini's.
if not config:

    configfile: "config/mini.yaml"


# One owner of defaults and checks: shape here, contents in evals.benchmark before the first job.
schema = yaml.safe_load(
    Path(workflow.basedir, "workflow/config.schema.yaml").read_text()
)
for fault in jsonschema.Draft202012Validator(schema).iter_errors(config):
    raise WorkflowError(f"config: {fault.json_path}: {fault.message}")

# Jobs use the Python that runs Snakemake, whether or not its environment is activated, and this
# folder's code, wherever --directory puts the results.
# A prefix of one's own takes the place of Snakemake's, and with it of strict mode.
shell.prefix(
    f"set -euo pipefail; export PATH='{Path(sys.executable).parent}':\"$PATH\" PYTHONPATH='{workflow.basedir}'; "
)

RESULTS = f"results/{config['name']}"
SEEDS = config["seeds"]
EVALUATIONS = {e["name"]: e.get("config", {}) for e in config["evaluations"]}
TABLES = [table["name"] for table in config["tables"]]

RUNS = {
    run["name"]: {"dataset": config["dataset"], "vit": config["vit"], **run}
    for run in config.get("runs", [])
}
# The two controls of every table: the first run's network as it was initialised, and raw pixels.
if RUNS:
    FIRST = next(iter(RUNS.values()))
    RECIPE = FIRST.get("recipe", {})
    UNTRAINED = {**RECIPE.get("optim", {}), "epochs": 0, "warmup_epochs": 0}
    RUNS["random_init"] = {**FIRST, "recipe": {**RECIPE, "optim": UNTRAINED}}
RELEASED = {weights["name"]: weights for weights in config.get("released", [])}
# The tokenizer whose ids a run predicts, if it has one: they are computed once for the data set.
TOKENS = {
    name: run["recipe"]["tokenizer"]
    for name, run in RUNS.items()
    if "tokenizer" in run.get("recipe", {})
}
MADE_IN = {run: f"{RESULTS}/runs" for run in RUNS} | {
    run: f"{RESULTS}/released" for run in RELEASED
}
ENCODERS = {run: SEEDS for run in RUNS} | {run: [0] for run in [*RELEASED, "pixels"]}


include: "workflow/rules/exclusive.smk"
include: "workflow/rules/shards.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/released.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    freeze_run,


wildcard_constraints:
    run=r"[a-z0-9_]+",
    seed=r"\d+",
    evaluation=r"[a-z0-9_]+",
    dataset=r"[a-z0-9_]+",
    tokenizer=r"[a-z0-9_]+",
    released=r"[a-z0-9_]+",


rule all:
    default_target: True
    input:
        expand(f"{RESULTS}/tables/{{table}}.md", table=TABLES),
        f"{RESULTS}/report.html",


onstart:
    hold_folder()
    # Every value of every run and evaluation, before the first job: hours must not end in a typo.
    check = [sys.executable, "-m", "evals.benchmark"]
    env = {**os.environ, "PYTHONPATH": str(workflow.basedir)}
    done = subprocess.run(
        check, input=yaml.safe_dump(dict(config)), text=True, env=env
    )
    if done.returncode:
        raise WorkflowError(
            "The config is refused, before the first job; see the error above."
        )


onsuccess:
    shell(f"python -m evals.tables show {RESULTS}")

# From real images to a results table. Try: make reproduce, or snakemake --profile workflow/profiles/local
# Another scale: --configfile config/hour.yaml

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")


# A config is taken whole: over a default underneath, --configfile would merge, and a network's
# size would be half the user's and half mini's.
if not config:

    configfile: "config/mini.yaml"


sys.path.insert(0, workflow.basedir)

# Jobs use the Python that runs Snakemake, whether or not its environment is activated, and this
# folder's code, wherever --directory puts the results.
# A prefix of one's own takes the place of Snakemake's, and with it of strict mode.
shell.prefix(
    f"set -euo pipefail; export PATH='{Path(sys.executable).parent}':\"$PATH\" PYTHONPATH='{workflow.basedir}'; "
)


include: "workflow/rules/grid.smk"
include: "workflow/rules/exclusive.smk"
include: "workflow/rules/shards.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/released.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/version.smk"


localrules:
    all,
    encoders,
    tables,
    # Nodes of a cluster reach no internet, as a rule.
    fetch,
    fetch_weights,
    # Its launcher only waits for the job that trains.
    pretrain,
    # Slurm's accounting is asked where Slurm is.
    gpu_hours,
    # A second each: less than a queue takes.
    metrics,
    tabulate,


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
        GRID.products,


onstart:
    hold_folder()
    check_cluster()
    if MISSING:
        lines = ["Files that you must bring:", *MISSING]
        lines.append("Or say in the config's `raw:` where they lie.")
        raise WorkflowError("\n".join(lines))
    GRID.write_plan()
    # Every value of every run and evaluation, before the first job: hours must not end in a typo.
    run_module("workflow.plan.check", GRID.config_plan)

# What the config asks for: runs, evaluations and tables, and the files that they need.

import os
import shlex
import subprocess
import sys
from pathlib import Path

RESULTS = f"results/{config['name']}"
# Notes of the cluster's jobs (ijepa/note_job.sh).
JOBS = f"work/{config['name']}/jobs"
SEEDS = config["seeds"]
# Cores of a job that trains or runs a network: two jobs with one thread each are done sooner than one
# after the other with two, where networks are small.
THREADS = config.get("threads", workflow.cores)
EVALUATIONS = {
    item["name"]: {
        "evaluation": item["name"],
        "dataset": config["dataset"],
        "label": "class",
        "uses": "features",
        "config": {},
        "config_of": {},
        **item,
    }
    for item in config["evaluations"]
}
TABLES = [table["name"] for table in config["tables"]]
PRODUCTS = [
    *[f"{RESULTS}/tables/{table}.md" for table in TABLES],
    f"{RESULTS}/tables/gpu_hours.md",
    f"{RESULTS}/metrics.json",
    f"{RESULTS}/report.html",
]

RUNS = {
    run["name"]: {
        "dataset": config["dataset"],
        **({"vit": config["vit"]} if "vit" in config else {}),
        "gpus": 1,
        **run,
    }
    for run in config.get("runs", [])
}
RELEASED = {weights["name"]: weights for weights in config.get("released", [])}
# The two controls: the first run's network as it was initialised, and raw pixels. They are in
# every table that does not name its runs.
CONTROLS = ["pixels"]
if RUNS:
    FIRST = next(iter(RUNS.values()))
    RECIPE = FIRST.get("recipe", {})
    UNTRAINED = {**RECIPE.get("optim", {}), "epochs": 0, "warmup_epochs": 0}
    RUNS["random_init"] = {**FIRST, "recipe": {**RECIPE, "optim": UNTRAINED}}
    CONTROLS.append("random_init")
# The tokenizer whose ids a run predicts, if it has one: they are computed once for the data set.
TOKENS = {
    name: run["recipe"]["tokenizer"]
    for name, run in RUNS.items()
    if "tokenizer" in run.get("recipe", {})
}
MADE_IN = {run: f"{RESULTS}/runs" for run in RUNS} | {
    run: f"{RESULTS}/released" for run in RELEASED
}
SEEDS_OF = {run: SEEDS for run in RUNS} | {run: [0] for run in [*RELEASED, "pixels"]}


def frozen_run(run, seed):
    """One cell of the grid as the file that its pretraining reads."""
    frozen = {**RUNS[run], "seed": int(seed)}
    return {key: value for key, value in frozen.items() if key not in ("name", "gpus")}


def encoder_of(run, seed):
    """The file of an encoder, trained here or published; raw pixels have none."""
    return (
        None if run == "pixels" else f"{MADE_IN[run]}/{run}/{seed}/encoder.safetensors"
    )


def features_of(run, seed, dataset):
    """The file that says of an encoder's features of a data set that they are there."""
    return f"{RESULTS}/features/{run}/{seed}/{dataset}/about.json"


def uses(run, evaluation):
    """What an evaluation of an encoder works on; raw pixels have no network to run."""
    asked = EVALUATIONS[evaluation]["uses"]
    return "features" if run == "pixels" and asked == "both" else asked


def protocol(run, evaluation):
    """The settings of an evaluation, with what differs for this encoder."""
    item = EVALUATIONS[evaluation]
    return {**item["config"], **item["config_of"].get(run, {})}


def limit(dataset):
    """Of which splits only so many images are evaluated."""
    return config.get("images", {}).get(dataset, {})


def subject_of(wc):
    """The files that an evaluation works on.

    What its outcome depends on is encoder and data. Features that were extracted anew, because they
    were not kept, are the same as before: hence ancient.
    """
    dataset = EVALUATIONS[wc.evaluation]["dataset"]
    made_of = uses(wc.run, wc.evaluation)
    files = {"data": f"data/shards/{dataset}/index.json"}
    if made_of != "images":
        files["features"] = ancient(features_of(wc.run, f"seed{wc.seed}", dataset))
    if wc.run != "pixels":
        key = "features_of" if made_of == "features" else "encoder"
        files[key] = encoder_of(wc.run, f"seed{wc.seed}")
    return files


def results_of(table):
    """The evaluations that fill a table."""
    runs = table.get("runs", [*dict.fromkeys([*RUNS, *RELEASED, *CONTROLS])])
    return [
        f"{RESULTS}/evaluations/{run}/seed{seed}/{evaluation}.json"
        for run in runs
        # Of what was measured elsewhere there is nothing to make.
        for seed in SEEDS_OF.get(run, [])
        for evaluation in table["evaluations"]
        if run != "pixels" or uses(run, evaluation) == "features"
    ]


# What a profile may say of pretraining jobs (workflow/profiles/slurm); by default they are processes
# of this machine.
LAUNCH = {
    "cluster": "local",
    "gpus_per_node": 8,
    "cpus_per_gpu": 10,
    "gb_per_gpu": 55,
    "save_seconds": 120,
    "poll_seconds": 10,
    "stage": "",
    "setup": "",
}


def launch_options(gpus, resources, threads):
    """The options of ijepa.launch, from a run's GPUs and the profile's resources."""
    options = {
        "cluster": resources.cluster,
        "gpus": gpus,
        "threads": threads,
        "partition": resources.get("slurm_partition", ""),
        "account": resources.get("slurm_account", ""),
        "qos": resources.get("qos", ""),
        "constraint": resources.get("constraint", ""),
        "extra": resources.get("slurm_extra", ""),
        "minutes": resources.get("runtime", 1440),
        "gpus-per-node": resources.gpus_per_node,
        "cpus-per-gpu": resources.cpus_per_gpu,
        "gb-per-gpu": resources.gb_per_gpu,
        "save-seconds": resources.save_seconds,
        "poll": resources.poll_seconds,
        "stage": resources.stage,
        "setup": resources.setup,
    }
    return as_options(options)


def as_options(values):
    """Values as a command takes them; what is "" is left out."""
    return " ".join(
        f"--{key}={shlex.quote(str(value))}"
        for key, value in values.items()
        if value != ""
    )


def raw_folder(dataset):
    """Where the raw files of a data set lie, or are brought to."""
    return config.get("raw", {}).get(dataset, f"data/raw/{dataset}")


# What tables and report must know of the config, as JSON.
ASKED = ("name", "dataset", "seeds", "evaluations", "tables", "external")
ASKED = {key: config[key] for key in ASKED if key in config}
ASKED |= {
    part: [{"name": item["name"]} for item in config.get(part, [])]
    for part in ("runs", "released")
}
ASKED = json.dumps(ASKED)
WANTED = sorted({result for table in config["tables"] for result in results_of(table)})
# What the report shows of: encoders trained here, and those with features of the data set that
# they are trained on.
SHOWN = {tuple(Path(result).parts[-3:]) for result in WANTED}
TRAINED = sorted({(run, seed) for run, seed, _ in SHOWN if run in RUNS})
# What decides the cost of pretraining, of the runs that are trained; as JSON.
COSTING = [run for run in config.get("runs", []) if run["name"] in dict(TRAINED)]
PREDICTED = json.dumps(
    {
        key: config[key]
        for key in ("dataset", "vit", "seeds", "threads")
        if key in config
    }
    | {"runs": COSTING}
)
NEIGHBOURS = sorted(
    {
        (run, seed)
        for run, seed, result in SHOWN
        if run != "pixels"
        and uses(run, Path(result).stem) != "images"
        and EVALUATIONS[Path(result).stem]["dataset"] == config["dataset"]
    }
)
TRAINED_ON = sorted({RUNS[run]["dataset"] for run, _ in TRAINED})
DATASETS = sorted(
    {*TRAINED_ON} | {EVALUATIONS[Path(result).stem]["dataset"] for *_, result in SHOWN}
)


def register_entry(dataset):
    """What the register says of a data set and decides its shards; of titles and addresses nothing."""
    path = os.environ.get(
        "IJEPA_REGISTER", Path(workflow.basedir, "data/datasets.yaml")
    )
    entry = yaml.safe_load(Path(path).read_text()).get(dataset, {})
    words = {"title", "citation", "licence", "origins", "max_corrupt"}
    return {key: value for key, value in entry.items() if key not in words}


def expected_encoders():
    """The run of each encoder, as its file should have it."""
    return {
        encoder_of(run, seed): frozen_run(run, seed.removeprefix("seed"))
        for run, seed in TRAINED
    }


def expected_evaluations():
    """What each result of the tables should say of itself."""
    found = {}
    for path in WANTED:
        run, seed, evaluation = Path(path).with_suffix("").parts[-3:]
        item = EVALUATIONS[evaluation]
        found[path] = {
            "name": item["evaluation"],
            "label": item["label"],
            "config": protocol(run, evaluation),
            "images": limit(item["dataset"]),
            "data": f"data/shards/{item['dataset']}",
            "encoder": encoder_of(run, seed),
        }
    return found


def expected_features():
    """What the features that evaluations ask for should say of themselves."""
    return {
        features_of(run, seed, dataset): {
            "data": f"data/shards/{dataset}",
            "images": limit(dataset),
            "encoder": encoder_of(run, seed),
        }
        for run, seed, dataset in sorted(
            {
                (run, seed, EVALUATIONS[Path(name).stem]["dataset"])
                for run, seed, name in SHOWN
                if uses(run, Path(name).stem) != "images"
            }
        )
    }


def missing_raw_files(datasets):
    """What must be brought by hand for data sets whose shards are not made yet."""
    asked = [
        f"{dataset}={raw_folder(dataset)}"
        for dataset in datasets
        if not Path(f"data/shards/{dataset}/index.json").exists()
    ]
    return (
        run_module("ijepa.data.shards", "missing", *asked).splitlines() if asked else []
    )


def missing_weights():
    """What must be brought by hand for token caches that are not made yet."""
    wanted = {
        (TOKENS[run], RUNS[run]["dataset"]) for run, _ in TRAINED if run in TOKENS
    }
    return [
        f"{tokenizer}: {weights} (its weights: python -m ijepa.data.tokens {tokenizer} --help)"
        for tokenizer, dataset in sorted(wanted)
        if (weights := config.get("tokenizers", {}).get(tokenizer, {}).get("weights"))
        and not Path(weights).exists()
        and not Path(f"data/shards/{dataset}/tokens/{tokenizer}.json").exists()
    ]


def run_module(module, *arguments, **options):
    """The output of a command of this project, or its error as one of Snakemake's."""
    env = {**os.environ, "PYTHONPATH": str(workflow.basedir)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=env, text=True, capture_output=True, **options)
    if done.returncode:
        raise WorkflowError(done.stderr.strip() or f"{module} failed")
    return done.stdout.strip()


# Said when a plan is made, and an error before the first job.
MISSING = (
    [*missing_raw_files(DATASETS), *missing_weights()]
    if workflow.is_main_process
    else []
)
if MISSING:
    MISSING = "\n".join(["Files that you must bring:", *MISSING])
    logger.warning(MISSING)

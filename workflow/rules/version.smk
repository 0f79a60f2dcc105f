# What DVC versions (dvc.yaml), compared with the config before DVC notes its hash.


# Rules without output: they run whenever they are asked for.
rule encoders:
    input:
        [
            f"{RESULTS}/runs/{run}/{seed}/{name}"
            for run, seed in TRAINED
            for name in ("encoder.safetensors", "run.yaml", "job.json", "train.jsonl")
        ],
        [
            f"{RESULTS}/released/{run}/seed0/encoder.safetensors"
            for run in RELEASED
            if (run, "seed0") in {shown[:2] for shown in SHOWN}
        ],
    log:
        f"logs/{RESULTS}/encoders.log",
    conda:
        "../../environment.yml"
    params:
        expected=lambda wc: {
            "encoders": expected_encoders(),
            "folder": f"{RESULTS}/runs",
        },
    script:
        "../scripts/audit.py"


rule features:
    input:
        sorted(
            {
                f"{RESULTS}/features/{run}/{seed}/{EVALUATIONS[Path(name).stem]['dataset']}/about.json"
                for run, seed, name in SHOWN
                if uses(run, Path(name).stem) != "images"
            }
        ),
    log:
        f"logs/{RESULTS}/features.log",
    conda:
        "../../environment.yml"
    params:
        expected=lambda wc, input: {
            "features": {
                path: {
                    "data": f"data/shards/{Path(path).parts[-2]}",
                    "images": limit(Path(path).parts[-2]),
                    "encoder": (
                        None
                        if Path(path).parts[-4] == "pixels"
                        else str(
                            Path(
                                MADE_IN[Path(path).parts[-4]],
                                *Path(path).parts[-4:-2],
                                "encoder.safetensors",
                            )
                        )
                    ),
                }
                for path in input
            },
            "folder": f"{RESULTS}/features",
        },
    script:
        "../scripts/audit.py"


rule evaluations_and_tables:
    input:
        PRODUCTS,
    log:
        f"logs/{RESULTS}/evaluations_and_tables.log",
    conda:
        "../../environment.yml"
    params:
        expected=lambda wc: {
            "evaluations": expected_evaluations(),
            "folder": f"{RESULTS}/evaluations",
            "tables": SPECS,
        },
    script:
        "../scripts/audit.py"

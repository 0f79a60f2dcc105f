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
            encoder_of(run, "seed0")
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
        list(expected_features()),
    log:
        f"logs/{RESULTS}/features.log",
    conda:
        "../../environment.yml"
    params:
        expected=lambda wc: {
            "features": expected_features(),
            "folder": f"{RESULTS}/features",
        },
    script:
        "../scripts/audit.py"


rule tables:
    input:
        PRODUCTS,
    log:
        f"logs/{RESULTS}/tables.log",
    conda:
        "../../environment.yml"
    params:
        expected=lambda wc: {
            "evaluations": expected_evaluations(),
            "folder": f"{RESULTS}/evaluations",
            "tables": {f"{RESULTS}/tables": [*TABLES, "gpu_hours", "cost", "tidy"]},
        },
    script:
        "../scripts/audit.py"

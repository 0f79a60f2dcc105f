# What DVC versions (dvc.yaml), compared with the config before DVC notes its hash.


# Rules without output: they run whenever they are asked for.
rule encoders:
    input:
        [
            f"{GRID.run_folder(*cell)}/{name}"
            for cell in GRID.trained
            for name in ("encoder.safetensors", "run.yaml", "job.json", "train.jsonl")
        ],
        [
            GRID.encoder(run, 0)
            for run in GRID.released
            if run in {cell.run for cell in GRID.cells}
        ],
    log:
        f"logs/{RESULTS}/encoders.log",
    conda:
        "../../environment.yml"
    params:
        expected=lambda wc: {
            "encoders": GRID.expected_encoders(),
            "folders": [f"{RESULTS}/runs"],
        },
    script:
        "../scripts/audit.py"


rule tables:
    input:
        GRID.products,
    log:
        f"logs/{RESULTS}/tables.log",
    conda:
        "../../environment.yml"
    params:
        expected=lambda wc: {
            "features": GRID.expected_features(),
            "evaluations": GRID.expected_evaluations(),
            "folders": [f"{RESULTS}/features", f"{RESULTS}/evaluations"],
            "tables": {
                f"{RESULTS}/tables": [*GRID.tables, "gpu_hours", "cost", "tidy"]
            },
        },
    script:
        "../scripts/audit.py"

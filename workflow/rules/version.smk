# Files that DVC versions (dvc.yaml), compared with the config before DVC records their hashes.


# These rules have no output, so they run whenever they are requested.
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
    shell:
        f"python -m workflow.plan.audit encoders {GRID.config_plan} " "2>&1 | tee {log}"


rule tables:
    input:
        GRID.products,
    log:
        f"logs/{RESULTS}/tables.log",
    conda:
        "../../environment.yml"
    shell:
        f"python -m workflow.plan.audit tables {GRID.config_plan} " "2>&1 | tee {log}"

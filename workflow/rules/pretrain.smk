# From a cell of the grid to an encoder.


rule freeze_run:
    output:
        f"{RESULTS}/runs/{{run}}/seed{{seed}}/run.yaml",
    log:
        f"logs/{RESULTS}/freeze_run/{{run}}-{{seed}}.log",
    conda:
        "../../environment.yml"
    params:
        run=lambda wc: frozen_run(wc.run, wc.seed),
    script:
        "../scripts/freeze_run.py"


rule pretrain:
    input:
        run=f"{RESULTS}/runs/{{run}}/seed{{seed}}/run.yaml",
        data=lambda wc: f"data/shards/{RUNS[wc.run]['dataset']}/index.json",
        # Ancient: tokens that are made anew are the same; what decides them is among params.
        tokens=lambda wc: (
            ancient(
                f"data/shards/{RUNS[wc.run]['dataset']}/tokens/{TOKENS[wc.run]}.json"
            )
            if wc.run in TOKENS
            else []
        ),
    output:
        # Checkpoints are not declared: they lie in work/, where Snakemake does not delete them.
        encoder=f"{RESULTS}/runs/{{run}}/seed{{seed}}/encoder.safetensors",
        log=f"{RESULTS}/runs/{{run}}/seed{{seed}}/train.jsonl",
        job=f"{RESULTS}/runs/{{run}}/seed{{seed}}/job.json",
    log:
        f"logs/{RESULTS}/pretrain/{{run}}-{{seed}}.log",
    # The launcher starts a lost job again by itself; others would fail again.
    retries: 0
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        **LAUNCH,
        mem_mb=lambda wc, attempt: 4000 * attempt,
    params:
        work=f"work/{config['name']}/{{run}}/seed{{seed}}",
        tokenizer=lambda wc: config.get("tokenizers", {}).get(TOKENS.get(wc.run), {}),
        launch=lambda wc, resources, threads: launch_options(
            RUNS[wc.run]["gpus"], resources, threads
        ),
    shell:
        "python -m ijepa.launch {input.run} --data $(dirname {input.data}) --work {params.work}"
        " --out {output.encoder} {params.launch} 2>&1 | tee -i {log}"

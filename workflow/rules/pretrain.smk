# From a cell of the grid to an encoder.


rule freeze_run:
    output:
        f"{RESULTS}/runs/{{run}}/seed{{seed}}/run.yaml",
    log:
        f"logs/{RESULTS}/freeze_run/{{run}}-{{seed}}.log",
    conda:
        "../../environment.yml"
    params:
        run=lambda wc: {
            key: value
            for key, value in {**RUNS[wc.run], "seed": int(wc.seed)}.items()
            if key != "name"
        },
    script:
        "../scripts/freeze_run.py"


rule pretrain:
    input:
        run=f"{RESULTS}/runs/{{run}}/seed{{seed}}/run.yaml",
        data=lambda wc: f"data/shards/{RUNS[wc.run]['dataset']}/index.json",
        tokens=lambda wc: (
            f"data/shards/{RUNS[wc.run]['dataset']}/tokens/{TOKENS[wc.run]}.json"
            if wc.run in TOKENS
            else []
        ),
    output:
        # Checkpoints are not declared: they lie in work/, where Snakemake does not delete them.
        encoder=f"{RESULTS}/runs/{{run}}/seed{{seed}}/encoder.safetensors",
        log=f"{RESULTS}/runs/{{run}}/seed{{seed}}/train.jsonl",
    log:
        f"logs/{RESULTS}/pretrain/{{run}}-{{seed}}.log",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        mem_mb=4000,
    params:
        work=f"work/{config['name']}/{{run}}/seed{{seed}}",
    shell:
        "python -m ijepa.train {input.run} --data $(dirname {input.data}) --work {params.work}"
        " --out {output.encoder} 2>&1 | tee {log}"

# From results to tables and to the page that a person reads.


rule tabulate:
    input:
        WANTED,
    output:
        expand(f"{RESULTS}/tables/{{table}}.{{kind}}", table=TABLES, kind=["csv", "md"]),
    log:
        f"logs/{RESULTS}/tabulate.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wc, output: Path(output[0]).parent,
        tables=json.dumps(SPECS),
    shell:
        "python -m evals.tables write {input} --tables {params.tables:q} --out {params.folder}"
        " 2>&1 | tee {log}"


rule report:
    input:
        tables=expand(f"{RESULTS}/tables/{{table}}.csv", table=TABLES),
        evaluations=rules.tabulate.input,
        logs=[f"{RESULTS}/runs/{run}/{seed}/train.jsonl" for run, seed in TRAINED],
        features=[
            ancient(features_of(run, seed, config["dataset"]))
            for run, seed in NEIGHBOURS
        ],
        data=f"data/shards/{config['dataset']}/index.json",
    output:
        f"{RESULTS}/report.html",
    log:
        f"logs/{RESULTS}/report.log",
    conda:
        "../../environment.yml"
    params:
        results=lambda wc, output: Path(output[0]).parent,
        tables=json.dumps(SPECS),
    shell:
        "python -m evals.report {params.results} --data $(dirname {input.data})"
        " --chosen {input.evaluations}"
        " --tables {params.tables:q} --out {output} 2>&1 | tee {log}"


rule gpu_hours:
    input:
        evaluations=WANTED,
        # Which jobs there were; of released weights there are none.
        jobs=[f"{RESULTS}/runs/{run}/{seed}/job.json" for run, seed in TRAINED],
    output:
        csv=f"{RESULTS}/tables/gpu_hours.csv",
        md=f"{RESULTS}/tables/gpu_hours.md",
    log:
        f"logs/{RESULTS}/gpu_hours.log",
    conda:
        "../../environment.yml"
    params:
        results=lambda wc, output: Path(output.csv).parents[1],
    shell:
        "python -m evals.gpu_hours {params.results} --out {output.csv} 2>&1 | tee {log}"


rule metrics:
    input:
        evaluations=WANTED,
        logs=[f"{RESULTS}/runs/{run}/{seed}/train.jsonl" for run, seed in TRAINED],
    output:
        f"{RESULTS}/metrics.json",
        f"{RESULTS}/plots/loss.csv",
        f"{RESULTS}/plots/accuracy.csv",
    log:
        f"logs/{RESULTS}/metrics.log",
    conda:
        "../../environment.yml"
    params:
        logs=lambda wc, input: f"--logs {' '.join(input.logs)}" if input.logs else "",
        results=lambda wc, output: Path(output[0]).parent,
    shell:
        "python -m evals.metrics {input.evaluations} {params.logs} --out {params.results}"
        " 2>&1 | tee {log}"

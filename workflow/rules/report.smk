# From results to tables and to the page that a person reads.


rule tabulate:
    input:
        *config.get("external", []),
        results=WANTED,
        gpu_hours=f"{RESULTS}/tables/gpu_hours.csv",
    output:
        expand(
            f"{RESULTS}/tables/{{table}}.{{kind}}",
            table=TABLES,
            kind=["csv", "md", "tex"],
        ),
        # What snakemake --report shows.
        report(
            expand(f"{RESULTS}/tables/{{table}}.html", table=TABLES),
            category="Tables",
        ),
        report(
            expand(f"{RESULTS}/tables/{{table}}.svg", table=TABLES),
            category="Accuracy and its cost",
        ),
        f"{RESULTS}/tables/tidy.csv",
    log:
        f"logs/{RESULTS}/tabulate.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wc, output: Path(output[0]).parent,
        config=ASKED,
    shell:
        "python -m evals.tables write {input.results} --config {params.config:q}"
        " --gpu-hours {input.gpu_hours} --out {params.folder} 2>&1 | tee {log}"


rule report:
    input:
        tables=expand(f"{RESULTS}/tables/{{table}}.csv", table=TABLES),
        evaluations=WANTED,
        gpu_hours=f"{RESULTS}/tables/gpu_hours.csv",
        # Of a config that trains nothing there is nothing to predict.
        predicted=[f"{RESULTS}/tables/cost.csv"] if COSTING else [],
        logs=[f"{RESULTS}/runs/{run}/{seed}/train.jsonl" for run, seed in TRAINED],
        features=[
            ancient(features_of(run, seed, config["dataset"]))
            for run, seed in NEIGHBOURS
        ],
        data=f"data/shards/{config['dataset']}/index.json",
    output:
        html=report(f"{RESULTS}/report.html", category="The whole report"),
        figures=directory(f"{RESULTS}/figures"),
    log:
        f"logs/{RESULTS}/report.log",
    conda:
        "../../environment.yml"
    params:
        results=lambda wc, output: Path(output.html).parent,
        config=ASKED,
        predicted=lambda wc, input: (
            f"--predicted {input.predicted}" if COSTING else ""
        ),
    shell:
        "python -m evals.report {params.results} --data $(dirname {input.data})"
        " --chosen {input.evaluations} --gpu-hours {input.gpu_hours} {params.predicted}"
        " --config {params.config:q} --out {output.html} 2>&1 | tee {log}"


rule predict_cost:
    input:
        [f"data/shards/{name}/index.json" for name in TRAINED_ON],
        [
            ancient(f"data/shards/{RUNS[run]['dataset']}/tokens/{TOKENS[run]}.json")
            for run in dict(TRAINED)
            if run in TOKENS
        ],
    output:
        f"{RESULTS}/tables/cost.csv",
    log:
        f"logs/{RESULTS}/predict_cost.log",
    conda:
        "../../environment.yml"
    # Alone on the machine: it runs as many at a time as its cores hold.
    threads: workflow.cores
    resources:
        card="here",
    params:
        config=PREDICTED,
    shell:
        "echo {params.config:q} | python -m ijepa.cost /dev/stdin --shards data/shards"
        " --gpu {resources.card} --csv {output} 2>&1 | tee {log}"


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
        # No parameter: where notes lie is no reason to make a table again that dvc has brought.
        "python -m evals.gpu_hours {params.results} --out {output.csv}"
        f" --notes {JOBS} "
        "2>&1 | tee {log}"


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

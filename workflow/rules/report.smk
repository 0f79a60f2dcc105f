# From results to tables and to the page that a person reads.

from dataclasses import asdict


rule tabulate:
    input:
        *GRID.benchmark.external,
        evaluated=GRID.evaluated,
        gpu_hours=f"{RESULTS}/tables/gpu_hours.csv",
    output:
        expand(
            f"{RESULTS}/tables/{{table}}.{{kind}}",
            table=GRID.tables,
            kind=["csv", "md", "tex"],
        ),
        # Files that snakemake --report shows.
        report(
            expand(f"{RESULTS}/tables/{{table}}.html", table=GRID.tables),
            category="Tables",
            caption="../report/table.rst",
        ),
        report(
            expand(f"{RESULTS}/tables/{{table}}.svg", table=GRID.tables),
            category="Accuracy and its cost",
            caption="../report/accuracy.rst",
        ),
        f"{RESULTS}/tables/tidy.csv",
    log:
        f"logs/{RESULTS}/tabulate.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wc, output: Path(output[0]).parent,
        # The command does not use this one. A changed value makes the output again.
        config=asdict(GRID.report_plan),
        results=GRID.wanted,
    shell:
        f"python -m evals.report.tables write {{params.results}} --plan {GRID.tables_plan}"
        " --gpu-hours {input.gpu_hours} --out {params.folder} 2>&1 | tee {log}"


rule report:
    input:
        tables=expand(f"{RESULTS}/tables/{{table}}.csv", table=GRID.tables),
        evaluated=GRID.evaluated,
        gpu_hours=f"{RESULTS}/tables/gpu_hours.csv",
        # A config that trains nothing has no cost to predict.
        predicted=[f"{RESULTS}/tables/cost.csv"] if GRID.costing else [],
        logs=[f"{GRID.run_folder(*cell)}/train.jsonl" for cell in GRID.trained],
        features=[
            ancient(GRID.features(*cell, GRID.pictured)) for cell in GRID.neighbours
        ],
        # Made by hand: ijepa-bench picture, ijepa-bench decode.
        drawn=GRID.drawn,
        data=GRID.index(GRID.pictured),
    output:
        html=report(
            f"{RESULTS}/report.html",
            category="The whole report",
            caption="../report/page.rst",
        ),
        figures=directory(f"{RESULTS}/figures"),
    log:
        f"logs/{RESULTS}/report.log",
    conda:
        "../../environment.yml"
    params:
        results=lambda wc, output: Path(output.html).parent,
        # The command does not use this one. A changed value makes the output again.
        config=asdict(GRID.report_plan),
        chosen=GRID.wanted,
        predicted=lambda wc, input: (
            f"--predicted {input.predicted}" if GRID.costing else ""
        ),
    shell:
        "python -m evals.report {params.results} --data $(dirname {input.data})"
        " --chosen {params.chosen} --gpu-hours {input.gpu_hours} {params.predicted}"
        f" --plan {GRID.tables_plan} "
        "--drawn {input.drawn:q} --out {output.html} 2>&1 | tee {log}"


rule predict_cost:
    input:
        [GRID.index(dataset) for dataset in GRID.trained_on],
    output:
        f"{RESULTS}/tables/cost.csv",
    log:
        f"logs/{RESULTS}/predict_cost.log",
    conda:
        "../../environment.yml"
    resources:
        card="here",
    params:
        runs=[run.name for run in GRID.costing],
        # The command does not use this one. A changed value makes the output again.
        config=GRID.predicted,
    shell:
        f"python -m workflow.plan.cost {GRID.config_plan} "
        "--runs {params.runs} --shards data/shards"
        " --gpu {resources.card} --csv {output} 2>&1 | tee {log}"


rule gpu_hours:
    input:
        evaluated=GRID.evaluated,
        # The jobs of each training; released weights have none.
        jobs=[f"{GRID.run_folder(*cell)}/job.json" for cell in GRID.trained],
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
        # Not a param: the folder of the notes is no reason to remake a table that DVC has brought.
        "python -m evals.report.gpu_hours {params.results} --out {output.csv}"
        f" --notes {GRID.jobs} "
        "2>&1 | tee {log}"


rule metrics:
    input:
        evaluated=GRID.evaluated,
        logs=[f"{GRID.run_folder(*cell)}/train.jsonl" for cell in GRID.trained],
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
        results=GRID.wanted,
        folder=lambda wc, output: Path(output[0]).parent,
    shell:
        "python -m evals.report.metrics {params.results} {params.logs} --out {params.folder}"
        " 2>&1 | tee {log}"

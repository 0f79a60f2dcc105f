# From an encoder to features, once for each data set, and to results.


# One process extracts the features and makes every result that uses nothing else. The results lie
# undeclared beside the marker: Snakemake would delete those that a failed job has finished.
rule evaluate_features:
    input:
        unpack(group_subject),
    output:
        # The arrays lie beside it, where Snakemake does not delete what a killed job has written.
        about=f"{RESULTS}/features/{{run}}/seed{{seed}}/{{dataset}}/about.json",
        done=f"{RESULTS}/evaluations/{{run}}/seed{{seed}}/{{dataset}}.done",
    log:
        f"logs/{RESULTS}/evaluate_features/{{run}}-{{seed}}-{{dataset}}.log",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
    params:
        encoder=lambda wc, input: input.get("encoder", "pixels"),
        evaluations=lambda wc: GRID.items(group_of(wc)),
        images=lambda wc: json.dumps(GRID.limit(wc.dataset)),
        work=lambda wc: f"{GRID.work}/evaluations/{wc.run}/seed{wc.seed}",
    shell:
        "python -m evals.group {params.encoder} --data $(dirname {input.data})"
        " --features {output.about} --results $(dirname {output.done}) --work {params.work}"
        " --evaluations {params.evaluations:q} --images {params.images:q} --done {output.done}"
        " 2>&1 | tee {log}"


# An evaluation that runs the encoder itself has a job of its own: it takes hours where others
# take seconds.
rule evaluate:
    input:
        unpack(subject_of),
    output:
        f"{RESULTS}/evaluations/{{run}}/seed{{seed}}/{{evaluation}}.json",
    log:
        f"logs/{RESULTS}/evaluate/{{run}}-{{seed}}-{{evaluation}}.log",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        mem_mb=lambda wc, attempt: 2500 * attempt,
    params:
        name=lambda wc: GRID.evaluations[wc.evaluation]["evaluation"],
        label=lambda wc: GRID.evaluations[wc.evaluation]["label"],
        given=lambda wc, input: " ".join(
            f"--{key} {input[key]}"
            for key in ("features", "encoder")
            if key in input.keys()
        ),
        config=lambda wc: json.dumps(GRID.protocol(wc.run, wc.evaluation)),
        images=lambda wc: json.dumps(
            GRID.limit(GRID.evaluations[wc.evaluation]["dataset"])
        ),
        work=lambda wc: f"{GRID.work}/evaluations/{wc.run}/seed{wc.seed}/{wc.evaluation}",
    shell:
        "python -m evals {params.name} --data $(dirname {input.data}) --label {params.label}"
        " {params.given} --config {params.config:q} --images {params.images:q}"
        " --work {params.work} --out {output} 2>&1 | tee {log}"

# From an encoder to features, once for each data set, and to one result each.


rule extract_features:
    input:
        encoder=lambda wc: encoder_of(wc.run, f"seed{wc.seed}"),
        data="data/shards/{dataset}/index.json",
    output:
        # The arrays lie beside it, where Snakemake does not delete what a killed job has written.
        f"{RESULTS}/features/{{run}}/seed{{seed}}/{{dataset}}/about.json",
    log:
        f"logs/{RESULTS}/extract_features/{{run}}-{{seed}}-{{dataset}}.log",
    wildcard_constraints:
        run=r"(?!pixels/)[a-z0-9_]+",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
    params:
        encoder=lambda wc, input: input.encoder or "pixels",
        images=lambda wc: json.dumps(limit(wc.dataset)),
    shell:
        "python -m evals.features {params.encoder} --data $(dirname {input.data}) --out {output}"
        " --images {params.images:q} 2>&1 | tee {log}"


use rule extract_features as extract_pixels with:
    input:
        encoder=[],
        data="data/shards/{dataset}/index.json",
    output:
        f"{RESULTS}/features/pixels/seed0/{{dataset}}/about.json",
    log:
        f"logs/{RESULTS}/extract_features/pixels-{{dataset}}.log",


rule evaluate:
    input:
        unpack(subject_of),
    output:
        f"{RESULTS}/evaluations/{{run}}/seed{{seed}}/{{evaluation}}.json",
    log:
        f"logs/{RESULTS}/evaluate/{{run}}-{{seed}}-{{evaluation}}.log",
    conda:
        "../../environment.yml"
    threads: lambda wc: 1 if uses(wc.run, wc.evaluation) == "features" else THREADS
    resources:
        mem_mb=lambda wc, attempt: 2500 * attempt,
    params:
        name=lambda wc: EVALUATIONS[wc.evaluation]["evaluation"],
        label=lambda wc: EVALUATIONS[wc.evaluation]["label"],
        given=lambda wc, input: " ".join(
            f"--{key} {path}"
            for key, path in input.items()
            if key in ("features", "encoder")
        ),
        config=lambda wc: json.dumps(protocol(wc.run, wc.evaluation)),
        images=lambda wc: json.dumps(limit(EVALUATIONS[wc.evaluation]["dataset"])),
        work=lambda wc: f"work/{config['name']}/evaluations/{wc.run}/seed{wc.seed}/{wc.evaluation}",
    shell:
        "python -m evals {params.name} --data $(dirname {input.data}) --label {params.label}"
        " {params.given} --config {params.config:q} --images {params.images:q}"
        " --work {params.work} --out {output} 2>&1 | tee {log}"

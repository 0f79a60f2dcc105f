# From an encoder to features, once, and from features to one result each.


rule extract_features:
    input:
        encoder=lambda wc: f"{MADE_IN[wc.run]}/{wc.run}/seed{wc.seed}/encoder.safetensors",
        data=f"data/shards/{config['dataset']}/index.json",
    output:
        f"{RESULTS}/features/{{run}}/seed{{seed}}.safetensors",
    log:
        f"logs/{RESULTS}/extract_features/{{run}}-{{seed}}.log",
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        mem_mb=4000,
    params:
        encoder=lambda wc, input: input.encoder or "pixels",
        images=json.dumps(config.get("images", {})),
    shell:
        "python -m evals.features {params.encoder} --data $(dirname {input.data}) --out {output}"
        " --images {params.images:q} 2>&1 | tee {log}"


use rule extract_features as extract_pixels with:
    input:
        encoder=[],
        data=f"data/shards/{config['dataset']}/index.json",
    output:
        f"{RESULTS}/features/pixels/seed0.safetensors",
    log:
        f"logs/{RESULTS}/extract_features/pixels.log",


rule evaluate:
    input:
        f"{RESULTS}/features/{{run}}/seed{{seed}}.safetensors",
    output:
        f"{RESULTS}/evaluations/{{run}}/seed{{seed}}/{{evaluation}}.json",
    log:
        f"logs/{RESULTS}/evaluate/{{run}}-{{seed}}-{{evaluation}}.log",
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        mem_mb=4000,
    params:
        config=lambda wc: json.dumps(EVALUATIONS[wc.evaluation]),
    shell:
        "python -m evals {wildcards.evaluation} --features {input} --config {params.config:q}"
        " --out {output} 2>&1 | tee {log}"

# From an address to WebDataset shards with an index, and to the tokens of their images.


rule fetch:
    output:
        # The batches beside it stay where they are; each is checked before it is used.
        touch("data/raw/{dataset}/fetched"),
    log:
        "logs/fetch/{dataset}.log",
    conda:
        "../../environment.yml"
    params:
        raw=lambda wc: GRID.raw(wc.dataset),
    shell:
        "python -m ijepa.data fetch {wildcards.dataset} --raw {params.raw:q}"
        " 2>&1 | tee {log}"


rule build_shards:
    input:
        "data/raw/{dataset}/fetched",
    output:
        # Only the index is declared: Snakemake would delete finished shards when it is interrupted.
        "data/shards/{dataset}/index.json",
    log:
        "logs/build_shards/{dataset}.log",
    conda:
        "../../environment.yml"
    threads: workflow.cores
    params:
        raw=lambda wc: GRID.raw(wc.dataset),
        # Not used here, but a change makes the shards anew.
        entry=lambda wc: register_entry(wc.dataset),
    shell:
        "python -m ijepa.data build {wildcards.dataset} --raw {params.raw:q}"
        " --out $(dirname {output}) 2>&1 | tee {log}"


rule tokenise:
    input:
        # Its weights are the user's: the plan names them where they are missing, as raw files.
        index="data/shards/{dataset}/index.json",
    output:
        "data/shards/{dataset}/tokens/{tokenizer}.npy",
        "data/shards/{dataset}/tokens/{tokenizer}.json",
    log:
        "logs/tokenise/{dataset}-{tokenizer}.log",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
    params:
        settings=lambda wc: as_options(GRID.benchmark.tokenizers.get(wc.tokenizer, {})),
    shell:
        "python -m ijepa.data.tokens {wildcards.tokenizer} --data $(dirname {input.index})"
        " {params.settings} 2>&1 | tee {log}"

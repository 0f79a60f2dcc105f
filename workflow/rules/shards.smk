# From an address to WebDataset shards with an index, and to the tokens of their images.

from workflow.plan.command_options import as_options, register_entry


# Data first (priority): a fault of another data set must not be told after pretraining.
rule fetch:
    output:
        # The raw files beside it are not declared, so they stay. Each is checked before it is used.
        touch(GRID.fetched("{dataset}")),
    log:
        "logs/fetch/{dataset}.log",
    priority: 1
    conda:
        "../../environment.yml"
    params:
        raw=lambda wc: GRID.raw(wc.dataset),
    shell:
        "python -m ijepa.data fetch {wildcards.dataset} --raw {params.raw:q}"
        " 2>&1 | tee {log}"


rule build_shards:
    input:
        GRID.fetched("{dataset}"),
    output:
        # Only the index is declared: an interrupted Snakemake would delete finished shards.
        GRID.index("{dataset}"),
    log:
        "logs/build_shards/{dataset}.log",
    priority: 1
    conda:
        "../../environment.yml"
    threads: workflow.cores
    params:
        raw=lambda wc: GRID.raw(wc.dataset),
        # The command does not use this one. A changed entry makes the shards again.
        entry=lambda wc: register_entry(wc.dataset),
    shell:
        "python -m ijepa.data build {wildcards.dataset} --raw {params.raw:q}"
        " --out $(dirname {output})"
        # Not a param: a change would make the shards again.
        f" --images-of {GRID.config_plan}"
        " 2>&1 | tee {log}"


rule tokenise:
    input:
        # A tokenizer's weights are no input: the user brings them, as raw files, and the plan names
        # those that are missing.
        index=GRID.index("{dataset}"),
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

# From published weights to an encoder, without any pretraining.

from workflow.plan.command_options import as_options


rule fetch_weights:
    output:
        # The part of an interrupted download beside it is not declared: Snakemake would delete it.
        GRID.weights("{released}"),
    log:
        "logs/fetch_weights/{released}.log",
    conda:
        "../../environment.yml"
    params:
        address=lambda wc: GRID.released[wc.released].address,
        sha256=lambda wc: GRID.released[wc.released].sha256,
        licence=lambda wc: GRID.released[wc.released].licence,
    shell:
        "python -m ijepa.released.download {params.address:q} {output} --sha256 {params.sha256:q}"
        " --licence {params.licence:q} 2>&1 | tee {log}"


rule import_weights:
    input:
        GRID.weights("{released}"),
    output:
        f"{RESULTS}/released/{{released}}/seed0/encoder.safetensors",
    log:
        f"logs/{RESULTS}/import_weights/{{released}}.log",
    conda:
        "../../environment.yml"
    params:
        licence=lambda wc: GRID.released[wc.released].licence,
        options=lambda wc: as_options(GRID.released[wc.released].options()),
    shell:
        "python -m ijepa.released.weights import {input} --out {output} {params.options}"
        " --licence {params.licence:q} 2>&1 | tee {log}"

# From a cell of the grid to an encoder.

from workflow.plan.command_options import launch_options

RUN_PLAN = GRID.run_plan("{wildcards.run}", "{wildcards.seed}")


rule pretrain:
    input:
        data=lambda wc: GRID.index(GRID.runs[wc.run].dataset),
        # Ancient: tokens that are made again are the same. Their settings are among the params.
        tokens=lambda wc: ancient(tokens) if (tokens := GRID.tokens(wc.run)) else [],
        start=lambda wc: GRID.begun_from(wc.run, wc.seed),
    output:
        # Checkpoints are not declared: Snakemake would delete them. They lie in work/.
        encoder=f"{RESULTS}/runs/{{run}}/seed{{seed}}/encoder.safetensors",
        run=f"{RESULTS}/runs/{{run}}/seed{{seed}}/run.yaml",
        log=f"{RESULTS}/runs/{{run}}/seed{{seed}}/train.jsonl",
        job=f"{RESULTS}/runs/{{run}}/seed{{seed}}/job.json",
    log:
        f"logs/{RESULTS}/pretrain/{{run}}-{{seed}}.log",
    # The longest jobs first: begun last, one would end alone while the other cores wait.
    priority: 1
    # The launcher restarts a lost job by itself; any other failure would happen again.
    retries: 0
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
    params:
        work=f"{GRID.work}/{{run}}/seed{{seed}}",
        # The command does not use these two. A changed value trains again.
        run=lambda wc: GRID.runs[wc.run].config(int(wc.seed)),
        tokenizer=lambda wc: GRID.tokenizer_settings(wc.run),
        launch=lambda wc, resources, threads: launch_options(
            GRID.runs[wc.run].gpus, resources, threads
        ),
    shell:
        # A copy in work/: a queued job reads it only when it begins, and Snakemake may have deleted
        # the outputs by then.
        f"mkdir -p {{params.work}} && cp {RUN_PLAN} "
        "{params.work}/run.yaml.part"
        " && mv {params.work}/run.yaml.part {params.work}/run.yaml"
        " && python -m ijepa.cluster.launch {params.work}/run.yaml --data $(dirname {input.data})"
        " --work {params.work} --out {output.encoder} {params.launch} 2>&1 | tee -i {log}"

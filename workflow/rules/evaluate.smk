# From an encoder to features, once for each data set, and to results.

from ijepa.encoder_file import PIXELS
from workflow.plan.paths import Group

RUN_AND_SEED = "{wildcards.run}", "{wildcards.seed}"
GROUP_PLAN = GRID.group_plan(*RUN_AND_SEED, "{wildcards.dataset}")
EVALUATION_PLAN = GRID.evaluation_plan(*RUN_AND_SEED, "{wildcards.evaluation}")


# One process extracts the features and makes every result that uses nothing else. The results lie
# beside the completion marker and are not declared: Snakemake would delete those that a failed job
# has finished.
rule evaluate_features:
    input:
        data=lambda wc: GRID.index(wc.dataset),
        encoder=lambda wc: GRID.comes_with(wc.run, wc.seed) or [],
    output:
        # The arrays beside it are not declared: Snakemake would delete those of a killed job.
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
        encoder=lambda wc: GRID.encoder(wc.run, wc.seed) or PIXELS,
        # The command does not use these two. A changed value makes the group again.
        evaluations=lambda wc: GRID.items(Group(wc.run, int(wc.seed), wc.dataset)),
        images=lambda wc: GRID.limit(wc.dataset),
        work=lambda wc: f"{GRID.work}/evaluations/{wc.run}/seed{wc.seed}",
    shell:
        f"python -m evals.group {GROUP_PLAN} "
        "{params.encoder} --data $(dirname {input.data})"
        " --features {output.about} --results $(dirname {output.done}) --work {params.work}"
        " --done {output.done} 2>&1 | tee {log}"


# An evaluation that runs the encoder itself has a job of its own: it takes hours where others
# take seconds.
rule evaluate:
    input:
        data=lambda wc: GRID.index(GRID.evaluations[wc.evaluation].dataset),
        encoder=lambda wc: GRID.comes_with(wc.run, wc.seed),
        # Ancient: deleted features that are extracted again are the same as before.
        features=lambda wc: ancient(
            GRID.single_features(wc.run, wc.seed, wc.evaluation)
        ),
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
        name=lambda wc: GRID.evaluations[wc.evaluation].evaluation,
        encoder=lambda wc: GRID.encoder(wc.run, wc.seed),
        label=lambda wc: GRID.evaluations[wc.evaluation].label,
        features=lambda wc, input: (
            f"--features {input.features}" if input.features else ""
        ),
        # The command does not use this one. A changed value makes the result again.
        config=lambda wc: GRID.evaluations[wc.evaluation].settings(wc.run),
        images=lambda wc: GRID.images_option(GRID.evaluations[wc.evaluation].dataset),
        work=lambda wc: f"{GRID.work}/evaluations/{wc.run}/seed{wc.seed}/{wc.evaluation}",
    shell:
        "python -m evals {params.name} --data $(dirname {input.data}) --label {params.label}"
        " --encoder {params.encoder} {params.features} {params.images}"
        f" --config {EVALUATION_PLAN}"
        " --work {params.work} --out {output} 2>&1 | tee {log}"

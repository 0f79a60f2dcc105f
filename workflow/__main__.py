"""The one door to every command: ``ijepa-bench COMMAND ...`` runs ``python -m MODULE ...``."""

import runpy
import sys

COMMANDS = {
    "reproduce": (
        "workflow.reproduce",
        "make all that a config asks for, and compare",
    ),
    "estimate": ("workflow.plan.estimate", "time that a config takes on this machine"),
    "cost": ("workflow.plan.cost", "GPU-hours, memory and energy of each run of a config"),
    "plan": ("workflow.plan", "runs, evaluations and tables of a config; every value of a run"),
    "check": ("workflow.plan.check", "mistakes in a config"),
    "audit": ("workflow.plan.audit", "results on disk that are not the config's"),
    "data": ("ijepa.data", "fetch, build and verify a data set's shards"),
    "clevr": ("ijepa.data.clevr", "render CLEVR-like images"),
    "tokens": ("ijepa.data.tokens", "token ids of a data set's images, for CAE"),
    "download": ("ijepa.released.download", "fetch published weights and check their SHA-256"),
    "weights": (
        "ijepa.released.weights",
        "inspect, import, export encoders, push them to a hub",
    ),
    "train": ("ijepa.train", "pretrain one encoder in this process"),
    "replay": ("ijepa.replay", "name the first tensor that was not finite in a training"),
    "watch": ("ijepa.watch", "follow trainings in the terminal, with curves"),
    "track": ("ijepa.track", "send logs to TensorBoard, Weights & Biases, MLflow or trackio"),
    "launch": ("ijepa.cluster.launch", "pretrain one encoder as a job, on Slurm or this machine"),
    "slurm": ("ijepa.cluster.slurm", "end the jobs that a killed workflow has left"),
    "features": ("evals.features", "extract an encoder's features of a data set"),
    "evaluate": ("evals", "one evaluation of one encoder"),
    "group": ("evals.group", "all evaluations that use the same features"),
    "picture": ("evals.picture", "patch features of your images: components, similarity, nearest"),
    "decode": ("evals.decoder", "draw what an encoder or its predictor tells of an image"),
    "decoder-cost": ("evals.decoder.cost", "FLOPs and GPU-hours of each preset of the decoder"),
    "tables": ("evals.report.tables", "show tables, or write them from results"),
    "report": ("evals.report", "write the page of tables and pictures"),
    "compare": ("evals.report.compare", "differences of two result sets beyond noise"),
    "reference": ("evals.report.reference", "compare results with ours, or publish them as ours"),
    "provenance": ("evals.report.provenance", "origin of a table's row"),
    "gpu-hours": ("evals.report.gpu_hours", "GPU-hours that each job took"),
    "metrics": ("evals.report.metrics", "files for dvc metrics and dvc plots"),
    "stages": ("workflow.scripts.dvc_stages", "write dvc.yaml from configs"),
    "versions": ("workflow.scripts.versioned", "make, settle and unlock what DVC versions"),
}
"""Module and purpose of each command."""


def usage() -> str:
    """Every command with a line each."""
    lines = [f"  {name:12} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: ijepa-bench COMMAND ...   (ijepa-bench COMMAND --help)", "", *lines])


def main() -> None:
    """Run the command that the first word names, with the other words as its arguments."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] not in COMMANDS:
        sys.exit(f"error: {words[0]!r} is no command: ijepa-bench --help lists them")
    module, _ = COMMANDS[words[0]]
    sys.argv = [f"ijepa-bench {words[0]}", *words[1:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

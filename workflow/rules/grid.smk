# The plan of the config (workflow.plan.grid), made as workflow.plan.session says.

from contextlib import contextmanager

from snakemake.utils import available_cpu_count

from ijepa.cores import usable_cores
from ijepa.errors import UserError
from workflow.plan import session
from workflow.plan.benchmark import DATASET_NAME
from workflow.plan.paths import Group
from workflow.plan.command_options import (
    as_options,
    check_options,
    launch_options,
    register_entry,
)


@contextmanager
def errors_of_snakemake():
    """Turn an error of the user's into one that Snakemake shows without a traceback."""
    try:
        yield
    except UserError as error:
        raise WorkflowError(str(error))


session.name_the_user()
# "cores: all" are those of the machine, also in a container with a quota below. A number may be
# meant for a cluster's nodes, which have nothing to do with this machine, their login node.
ALL = workflow.cores == available_cpu_count()
CORES = usable_cores() if ALL else workflow.cores
MISSING = []
with errors_of_snakemake():
    GRID = session.plan(dict(config), workflow.configfiles, CORES)
    resources = workflow.resource_settings
    session.take_names_as_they_are(resources._parsed_default_resources)
    for own in resources._parsed_overwrite_resources.values():
        session.take_names_as_they_are(own)
    if workflow.is_main_process:
        GRID.write_plan()  # not in onstart, which --no-hooks leaves out
        logger.info(GRID.grouped())
        for path in GRID.forget_incomplete():
            logger.warning(f"{path} is gone: it is made again")
        # A warning while the plan is made; an error before the first job (onstart).
        if MISSING := session.missing_files(GRID):
            logger.warning("\n".join(["Files that you must bring:", *MISSING]))
RESULTS = GRID.results
THREADS = GRID.threads

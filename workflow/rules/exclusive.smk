# One workflow at a time in a folder.

import fcntl


def hold_folder():
    """Refuse a second workflow in this folder; unlike Snakemake's lock, this one dies with us."""
    global HELD
    HELD = open(".snakemake/running", "w")
    try:
        fcntl.flock(HELD, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            "Another snakemake works in this folder: wait for it, or end it."
        )

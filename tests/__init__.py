"""Tests, each of one thread: several run at a time, and two threads add in another order than one.

It is set here because torch reads it when it is imported.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

"""The evaluations: one module each, whose file name is its name in a config (evals.protocol)."""

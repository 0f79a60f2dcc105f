"""Evaluations, one module each. A file name is the name in a config (evals.protocol)."""

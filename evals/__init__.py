"""Evaluations: an encoder in, numbers out; no method is known here."""

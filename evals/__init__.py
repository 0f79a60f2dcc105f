"""Evaluations of encoders. No pretraining method is known here: an encoder in, numbers out."""

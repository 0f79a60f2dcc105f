"""Pretraining of image encoders without labels: I-JEPA and the methods that it is compared with."""

"""Decoder: pictures of what an encoder or its predictor tells of an image (I-JEPA, section 7)."""

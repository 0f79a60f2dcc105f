"""Tables, figures, the page, comparisons and provenance, made from results of evaluations."""

"""From results to what people read: tables, figures, the page, comparisons and provenance."""

"""Sweeps: one question about many prompts, resumable, reduced to a table of means. `tdb sweep` runs them."""

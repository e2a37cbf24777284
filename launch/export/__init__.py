"""`primezero export`: a run's model as a plain Hugging Face folder."""

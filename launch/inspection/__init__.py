"""`primezero inspect`: the episodes of a run's journal, to be browsed."""

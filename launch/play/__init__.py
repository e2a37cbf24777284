"""`primezero play`: both roles of a model, for a person at a terminal."""

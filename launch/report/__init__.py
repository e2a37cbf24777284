"""`primezero report`: what runs have recorded, as a page and pictures."""

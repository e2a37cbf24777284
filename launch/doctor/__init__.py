"""`primezero doctor`: whether this machine can run a training, and what to do where it cannot."""

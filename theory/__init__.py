"""One runnable script per claim: `python -m theory.proposition1` prints its evidence and saves a picture."""

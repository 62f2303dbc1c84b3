"""The baselines and the sanity rows, one file each."""

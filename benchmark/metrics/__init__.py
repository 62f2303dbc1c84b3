"""Metrics, one file each, and what several share, a file for each job: the hash of a number's code holds no others."""

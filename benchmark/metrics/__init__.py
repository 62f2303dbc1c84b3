"""Metrics, one file each, and what several share, one file for each job: the hash of a number's code holds no others."""

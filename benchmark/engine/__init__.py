"""Training, sampling, scoring, searches, and the processes and jobs that carry them out."""

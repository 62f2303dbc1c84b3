"""Results: jobs and runs, the results file, which rows a command reads, and the regression rules. No torch."""

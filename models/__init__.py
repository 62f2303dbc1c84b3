"""MUNI and the parts that every method is built from."""

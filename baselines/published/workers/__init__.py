"""What other Pythons run: a script and a table of facts for each external model, and the protocol that they share."""

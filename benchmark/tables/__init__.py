"""Tables and claims: their files, the numbers of a table, its layout, and every output format. No torch."""

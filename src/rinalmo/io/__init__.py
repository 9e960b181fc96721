"""Files: opening, writing whole, locks; tables, FASTA, recipes."""

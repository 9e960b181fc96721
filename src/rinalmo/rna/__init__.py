"""RNA on paper: sequence files in. Imports neither torch nor anything above `rinalmo.errors`."""

from rinalmo.rna.fasta import Record, read_fasta

__all__ = ["Record", "read_fasta"]

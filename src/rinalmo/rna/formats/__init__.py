"""Structures in and out of files: DBN, CT, BPSEQ, ST, and CSV, TSV or Parquet tables, told by the file's ending.

    .dbn .db .dot .vienna   sequence and dot-bracket on two lines, with or without a FASTA header
    .ct                     one line a nucleotide with its partner, several RNAs in one file
    .bpseq                  the same in three columns
    .st                     bpRNA's: dot-bracket and the kind of loop of every nucleotide
    .csv .tsv .parquet      columns id, sequence, structure

Each format has a file here that turns lines into `Structure`s and back. Letters stay as the user wrote them. What a
format holds beyond name, sequence and pairs (energies, numbering, loops) is read past.
"""

from rinalmo.rna.formats.files import format_of, read_rows, read_structures, write_structures

__all__ = ["format_of", "read_rows", "read_structures", "write_structures"]

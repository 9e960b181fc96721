"""RNA sequences and structures: alphabet, base pairs, file formats, decoding, thermodynamics. No torch."""

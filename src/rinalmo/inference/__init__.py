"""What each command computes, and what it writes: embeddings, masked nucleotides, variant scores, structures."""

"""From sequences to answers: batching, fill-mask, embeddings, files."""

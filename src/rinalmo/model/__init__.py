"""The model, on packed tokens: torch only, no files, no Hugging Face."""

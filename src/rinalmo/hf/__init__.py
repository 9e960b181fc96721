"""The Hugging Face skin: config, tokenizer, models and their registration with the Auto classes."""

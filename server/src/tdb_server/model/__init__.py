"""The transformer, its autoencoders, its weights and its tokenizer."""

"""Decoders for servers: one reading of a network built like Llama, and the files that others load it from."""

"""The coverage table: which networks, what is done to each, and how it is written down."""

"""Forward processes: what noise does to tokens."""

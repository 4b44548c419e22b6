"""Corpora: what the text is and how it becomes sequences of L tokens, one file each. None imports Lightning."""

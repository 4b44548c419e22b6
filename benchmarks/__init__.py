"""Speed and memory, measured against plain reference code; see README.md."""

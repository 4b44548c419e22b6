"""Time samplers: which t a global batch is noised at, and the weight that keeps its mean an integral."""

"""The data pipeline: documents -> token ids -> packed sequences -> batches, in an order that any cluster reproduces."""

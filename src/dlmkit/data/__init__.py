"""The data pipeline: documents -> token ids -> packed blocks -> batches in an order that any cluster reproduces."""

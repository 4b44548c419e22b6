"""Objectives: (prediction, noised, process) -> TokenLoss."""

"""Learning-rate schedules: the factor on the learning rate as a function of the optimizer step."""

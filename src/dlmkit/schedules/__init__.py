"""Noise schedules: alpha(t), the probability that a token is still clean at time t (0 is data, 1 is noise)."""

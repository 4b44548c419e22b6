"""Lightning callbacks: attention annealing, sample logging, progress and run records."""

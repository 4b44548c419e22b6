"""What training needs beside the step: sums over a global batch, FLOPs, sharding, learning-rate schedules."""

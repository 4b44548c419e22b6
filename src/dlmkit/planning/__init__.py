"""What a run needs before anything is spent: memory, operations, time and money, without a weight in memory.

Nothing here trains, downloads, or knows Hydra or Lightning. A network is built on torch's meta device; one step of a
copy of it with few layers runs on fake tensors, which have sizes and no values, and what stays alive is counted.
"""

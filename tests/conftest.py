"""What every test runs under: one thread, no network, and caches of its own."""

import os
import signal
import tempfile

# Before anything imports Hugging Face libraries, which read their environment once.
_caches = tempfile.TemporaryDirectory(prefix="dlmkit-tests-")
os.environ["XDG_CACHE_HOME"] = _caches.name
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in ("DLMKIT_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
    os.environ.pop(_name, None)

# A shell lets its background jobs ignore Ctrl-C, and so would the runs that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402

torch.set_num_threads(1)

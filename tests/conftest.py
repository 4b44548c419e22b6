"""What every test runs under: one thread, no network, and caches of its own."""

import os
import shutil
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

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


ALL = "DLMKIT_ALL_TESTS"
"""Environment variable under which the tests run too that are marked as long or compiled."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what takes long, so that the usual run ends in its time, and what this machine can't compile."""
    for item in items:
        compiled = item.get_closest_marker("compiled")
        if compiled is not None and shutil.which("g++") is None:
            item.add_marker(pytest.mark.skip(reason="kernels are compiled, and there is no g++"))
        takes_long = compiled is not None and not compiled.kwargs.get("usual", False)
        if ALL not in os.environ and (takes_long or item.get_closest_marker("long") is not None):
            item.add_marker(pytest.mark.skip(reason=f"long: {ALL}=1 runs it"))

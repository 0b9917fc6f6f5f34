"""Clients' code imports torch_npu: it runs under `pytest -p fusion_attention.pytest_plugin`.

tests/python/test_clients.py runs it so, in a process of its own. Without the plugin nothing in this
folder is collected, so the module that stands in for torch_npu reaches no other test.
"""

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leaves the folder's files out where there is no torch_npu to import."""
    return None if config.pluginmanager.hasplugin("fusion_attention.pytest_plugin") else True

"""What all Python tests share: every test starts from the same random state."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_random_state() -> None:
    torch.manual_seed(20240607)

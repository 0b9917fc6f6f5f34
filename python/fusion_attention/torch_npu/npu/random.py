"""torch_npu.npu.random: random numbers. They come from PyTorch's generator of the CPU.

So torch.npu.manual_seed(seed) and torch.manual_seed(seed) are the same, and dropout masks follow
both. The device's own numbers are other ones.
"""

import torch
from torch import Tensor


def manual_seed(seed: int) -> None:
    """Seeds the CPU's generator."""
    torch.default_generator.manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seeds the CPU's generator, which is that of all devices."""
    torch.default_generator.manual_seed(int(seed))


def seed() -> None:
    """Seeds the CPU's generator with a number that is random."""
    torch.default_generator.seed()


def seed_all() -> None:
    """Seeds the CPU's generator with a number that is random."""
    torch.default_generator.seed()


def initial_seed() -> int:
    """Returns the seed of the CPU's generator."""
    return torch.default_generator.initial_seed()


def get_rng_state(device: int | str | torch.device = "npu") -> Tensor:
    """Returns the state of the CPU's generator."""
    return torch.default_generator.get_state()


def set_rng_state(new_state: Tensor, device: int | str | torch.device = "npu") -> None:
    """Sets the state of the CPU's generator."""
    torch.default_generator.set_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    """Returns the state of the CPU's generator, once for each device."""
    return [get_rng_state() for _ in range(torch.npu.device_count())]


def set_rng_state_all(new_states: list[Tensor]) -> None:
    """Sets the state of the CPU's generator to the first of them."""
    set_rng_state(new_states[0])

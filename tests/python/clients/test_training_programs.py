"""What training programs do around the operator: checkpoints, and random states put back."""

import io
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor, nn

N, D = 2, 8


class Block(nn.Module):
    """One attention with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(N * D, 3 * N * D)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return torch_npu.npu_fusion_attention(query, key, value, N, "BSH", keep_prob=0.5)[0]


def saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "rng": torch.npu.get_rng_state()}, file)
    file.seek(0)
    return file


# As resume code writes it; a number and a table name devices that were there when it was saved.
@pytest.mark.parametrize(
    "map_location",
    ["npu:0", "npu", torch.device("npu:0"), "cpu", None, lambda storage, place: storage.npu(0)],
)
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_continues_the_run(map_location: Any, weights_only: bool) -> None:
    torch.npu.manual_seed(5)
    model, x = Block().npu(), torch.randn(2, 9, N * D, device="npu")
    checkpoint = torch.load(saved(model), map_location=map_location, weights_only=weights_only)
    expected = model(x)
    assert not torch.equal(model(x), expected)
    resumed = Block().npu()
    resumed.load_state_dict(checkpoint["model"])
    torch.npu.set_rng_state(checkpoint["rng"].cpu())
    assert torch.equal(resumed(x), expected)


def test_a_checkpoint_of_a_real_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors say npu:3 in the file, and nobody maps them."""
    model = Block()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "npu:3")
        file = saved(model)
    assert b"npu:3" in file.getvalue()
    loaded = torch.load(file, weights_only=True)["model"]
    assert all(torch.equal(loaded[name], x) for name, x in model.state_dict().items())

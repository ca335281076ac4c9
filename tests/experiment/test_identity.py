"""What a run was made with, said where there is no such machine to run on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from shepherd.config import Config
from shepherd.experiment.identity import identity
from shepherd.types import Partition


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_that_is_not_of_cuda_has_a_processor_too(device):
    base = SimpleNamespace(device=torch.device(device), digest="", tokenizer_digest="")
    rows = SimpleNamespace(
        dataset=SimpleNamespace(digest=""),
        examples={},
        held_out=(),
        partition=Partition({}, ""),
        day="",
        canaries=(),
    )
    said = identity(Config(), base, rows)
    assert said["device"] == device and said["processor"]

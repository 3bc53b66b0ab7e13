"""Memory by the tensors alive, checked against sums done by hand."""

import torch

from dive_fast.train.memory import PeakMemory, optimizer_bytes, tensor_bytes


def test_peak_memory_counts_what_is_alive_at_once():
    x = torch.randn(1000, 100)
    with PeakMemory() as memory:
        kept = x + 1  # 400,000 bytes
        for _ in range(5):
            kept.add_(1)  # in place
            kept.view(10, -1).t()  # views
            x.add_(1)  # in place, of a tensor from before
            (kept * 2).sum()  # 400,000 and 4, gone again
    assert memory.peak == 800_000 + 4


def test_peak_memory_sees_what_is_kept_for_the_way_back_and_what_checkpointing_saves():
    layers = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.GELU()) for _ in range(8)])
    x = torch.randn(1000, 50, requires_grad=True)
    peaks = []
    for checkpointing in (False, True):
        with PeakMemory() as memory:
            y = x
            for layer in layers:
                y = torch.utils.checkpoint.checkpoint(layer, y, use_reentrant=False) if checkpointing else layer(y)
            y.sum().backward()
        peaks.append(memory.peak)
        del y
        layers.zero_grad()
        x.grad = None
    kept = 8 * 2 * 1000 * 50 * 4  # each layer's two results
    assert kept < peaks[0] < 1.5 * kept
    assert peaks[1] < 0.8 * peaks[0]


def test_bytes_of_weights_and_optimizer():
    norm = torch.nn.BatchNorm1d(10)  # two parameters, two buffers of 10, and an int64 count
    assert tensor_bytes([norm, torch.nn.Linear(3, 2, bias=False).half()]) == 4 * 40 + 8 + 12
    assert optimizer_bytes(norm.parameters(), average=True) == 20 * 12
    assert optimizer_bytes(norm.parameters(), average=False) == 20 * 8

"""What a call asks of a CUDA device: how often it waits, how many kernels it launches."""

from __future__ import annotations

import warnings

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.timing import Call


def synchronisations(call: Call) -> int:
    """How often the host waits for the device in one call, as torch's debug mode sees it."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


def launches(call: Call) -> int:
    """How many kernels run on the device in one call; copies and fills among them."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profiled.events() or ())

"""The promises of devices on NVIDIA's own driver. Skipped where there is no GPU."""

from __future__ import annotations

import brisk_native
import pytest

from tests.gpu.promises import DevicePromises, content

__all__ = ["content"]


@pytest.mark.gpu
class TestOnGpu(DevicePromises):
    """All of them."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Skip without a device of the real driver."""
        monkeypatch.delenv("BRISK_CUDA_DRIVER", raising=False)
        if not brisk_native.devices():
            pytest.skip("there is no CUDA device here")

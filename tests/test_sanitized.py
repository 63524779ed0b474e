"""The kernels that compute-sanitizer runs on a GPU exist, and are what their names say."""

from __future__ import annotations

import pytest

from tests.gpu.sanitized import KERNELS, kernel_text


@pytest.mark.parametrize("name", KERNELS)
def test_each_is_lowered_as_it_is_named(name: str) -> None:
    text = kernel_text(name)
    assert text.count("hopper.kernel ") == 1
    assert ("multicast" in text) == name.endswith("cluster")
    assert ("cluster <1x1>" not in text) == name.endswith("cluster")
    assert "hopper.setmaxnreg" not in text
    assert ("hopper.wait_for_grid" in text) == name.endswith("stream")
    assert (" split_k 2 " in text) == ("split" in name)

"""Echo keeps the promises of a plugin, and its colours are those a plain loop finds."""

import pytest
import torch

from vssl_core.testing import check_plugin
from vssl_echo.objective import Echo


@pytest.mark.parametrize("options", [{}, {"moments": 1, "momentum": 0.0}])
def test_it_keeps_its_promises(options):
    check_plugin("echo", **options)


def test_colours_are_the_means_of_equal_parts_of_the_clip():
    clip = torch.rand(2, 3, 8, 5, 6)
    echo = Echo.__new__(Echo)
    torch.nn.Module.__init__(echo)
    echo.config = Echo.Config(moments=4)
    told = echo.colours(clip).unflatten(1, (3, 4))
    for moment in range(4):
        torch.testing.assert_close(told[:, :, moment], clip[:, :, 2 * moment : 2 * moment + 2].mean(dim=(2, 3, 4)))

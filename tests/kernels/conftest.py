"""Every test of kernels runs on each instruction set that this processor has."""

import pytest
from kernel_rows import CHOSEN, LEVELS

from levsketch.backends.cpu import use_instruction_set


@pytest.fixture(params=LEVELS)
def level(request):
    use_instruction_set(request.param)
    yield request.param
    use_instruction_set(CHOSEN)

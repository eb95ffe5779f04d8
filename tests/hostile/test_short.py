"""The short version of `make hostile`: no normal client is lost or misses anything, memory stays within its budget.

Times are not judged here: other tests run beside.
"""

from __future__ import annotations

import os

import pytest

from tests.hostile.__main__ import faults, parsed, run
from tests.hostile.rig import ATTACKS


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes a CPU for the hub and one for the attackers")
def test_no_attack_costs_a_normal_client_anything_but_time():
    """Each of them once, and each took place."""
    pairs = run(parsed(["--short"]), list(ATTACKS))
    found = {attack.name: faults(attack, pairs[attack.name], timed=False) for attack in ATTACKS}
    assert not any(found.values()), found

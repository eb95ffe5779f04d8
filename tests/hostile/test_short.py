"""The short version of `make hostile`: no normal client is lost or misses anything, memory stays within its budget.

Times are not judged here: other tests run beside.
"""

from __future__ import annotations

import os

import pytest

from tests.hostile.__main__ import chosen_of, faults, parsed, run


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes a CPU for the hub and one for the attackers")
def test_no_attack_costs_a_normal_client_anything_but_time():
    """Each of them once from one address and once from many, and each took place."""
    arguments = parsed(["--short"])
    chosen = chosen_of(None, arguments.sources)
    pairs = run(arguments, chosen)
    found = {attack.label: faults(attack, pairs[attack.label], timed=False) for attack in chosen}
    assert not any(found.values()), found

"""The client module hub/static/hub.js on a clock of its own, in Node; the scenarios stand in hub_js_clock.mjs."""

from __future__ import annotations

import pytest

from tests.e2e import nodejs

SCENARIOS = {
    "order": "what was missed comes before what came since, also where both are read together",
    "backs": "full jitter up to a bound that doubles, behind the hub's hint",
    "wayBack": "from polls back to WebSocket once that works again",
    "sleeps": "a silent hub is left, at once where a hidden page is looked at again",
    "bounds": "one publication too many is refused while others wait",
    "lostAnswer": "an answer to a poll that is lost on its way is asked for again",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@nodejs.NODE
def test_on_a_clock_of_its_own(scenario: str) -> None:
    nodejs.run("hub_js_clock.mjs", scenario)

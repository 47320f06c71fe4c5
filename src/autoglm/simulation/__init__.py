"""A fleet in a box: very many simulated devices against a real hub, in virtual time.

What is real: the hub, its database, its HTTP server, its guard over roll-outs, the packages, and every
message on the wire. What is simulated: the devices (state machines that wait, lose connections, crash, and
install nothing) and the clock, so that days of soaking pass in minutes. The same seed gives the same run.

    >>> from autoglm.simulation import Scenario, simulate
    >>> simulate(Scenario(devices=1000, seed=7)).on_target            # doctest: +SKIP
    1000
"""

from autoglm.simulation.fleet import simulate, simulate_at
from autoglm.simulation.outcome import Outcome, Sample, Trial
from autoglm.simulation.scenario import Scenario

__all__ = ["Outcome", "Sample", "Scenario", "Trial", "simulate", "simulate_at"]

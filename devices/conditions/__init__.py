"""How a device is when it measures: looked at, made so where that is asked for, and put back.

``as-shipped`` changes nothing.  ``pinned`` fixes clocks, screen and radios, and refuses where it
may not: a condition is never silently less than it says.

    ``gates``      what must hold, and the refusals that say what does not
    ``readings``   the device's state in one command; ``linux`` and ``android`` understand it
    ``preflight``  judging it, and waiting for what passes
    ``pinned``     what pinning changes
    ``journal``    changes that are put back, whatever becomes of us; ``scripts`` that do it
    ``visit``      all of it, for as long as a visit lasts
"""

from devices.conditions.gates import Gates, Refusal
from devices.conditions.journal import restore, still_applied
from devices.conditions.preflight import Preflight, preflight, settle
from devices.conditions.readings import Readings
from devices.conditions.visit import Applied, applied

__all__ = [
    "Applied",
    "Gates",
    "Preflight",
    "Readings",
    "Refusal",
    "applied",
    "preflight",
    "restore",
    "settle",
    "still_applied",
]

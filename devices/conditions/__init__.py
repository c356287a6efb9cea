"""How a device is when it measures: looked at, made so where it is asked for, and put back.

``as-shipped`` changes nothing.  ``pinned`` fixes clocks, screen and radios, and refuses where it
may not: a condition is never silently less than it says.
"""

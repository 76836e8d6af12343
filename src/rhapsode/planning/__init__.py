"""How long a training would take on how many machines, and what would break first: `rhapsode plan`, docs/scaling.md.

costs        what a step asks of a device, a sum of a link, a save of a disk; and how fast those are, as measured
forecast     from a recipe, a number of tokens and machines to a table of times, each as a range
"""

from rhapsode.planning.costs import Device, Link, devices, links
from rhapsode.planning.forecast import Fleet, Forecast, forecast

__all__ = ["Device", "Fleet", "Forecast", "Link", "devices", "forecast", "links"]

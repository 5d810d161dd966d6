"""The laboratory: what made the bundled data and weights, experiments, benches. Not installed."""

from cclkit.machine import be_patient

be_patient()  # its commands start from many doors, and torch reads this once

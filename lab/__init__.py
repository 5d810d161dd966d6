"""The laboratory: what made the bundled data and weights, experiments, benches. Not installed."""

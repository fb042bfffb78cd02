"""How good samples are: feature extractors, reference statistics, distances, and the `measure` stage."""

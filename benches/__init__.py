"""Comparison benches: our pair of agents and others in the same topology, interleaved; run by `./dev bench`."""

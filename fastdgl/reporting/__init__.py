"""What compression cost and gained, on one page: facts of the networks, what drawing takes here, metrics, curves, images."""

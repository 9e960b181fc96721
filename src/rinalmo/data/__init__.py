"""From sequence databases to batches: prepare · store · sampler · masking · batches."""

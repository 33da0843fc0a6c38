"""Training: methods (what one step does), runs (folders on disk), checkpoints, and the loop that ties them together."""

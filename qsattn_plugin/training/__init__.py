"""Training: methods (one step), runs (folders on disk), distributed processes, reports, and the loop."""

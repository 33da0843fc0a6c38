"""Scores of translated pictures, and entropy maps of the features behind them."""

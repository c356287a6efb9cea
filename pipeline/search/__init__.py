"""Search: which sub-network, for which device; predicted by a table, then measured."""

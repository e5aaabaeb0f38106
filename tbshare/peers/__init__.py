"""The other nodes: identity, pairing, and who fetches which block from whom."""

"""Links between two nodes: one TCP port, the TLS control session, lanes."""

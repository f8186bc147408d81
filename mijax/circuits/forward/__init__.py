"""Graph, ports and the forward passes with a stream for each receiver."""

"""What both sides speak: configuration, episodes, wire messages, the stream's sockets, run records."""

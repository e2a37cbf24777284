"""What both sides speak: configuration, episodes, rewards, wire messages, the stream's sockets, run records."""

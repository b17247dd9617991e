"""Queues between stages: two ZeroMQ sockets and credit."""

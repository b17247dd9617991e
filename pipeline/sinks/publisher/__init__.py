"""Poses published over ZeroMQ: the sockets, who may subscribe, and what subscribers missed."""

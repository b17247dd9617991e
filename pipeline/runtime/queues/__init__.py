"""Queues between stages: two ZeroMQ sockets and credit. Inside, only this room imports zmq.

queue.py        what both ends agree on, and what a queue promises: start here
sender.py       the sending end
  mailbox.py    the thread of a sender that never blocks (`drop_oldest`)
  outlet.py     the sender's socket, and what it knows of its receiver
receiver.py     the receiving end; waiting for several queues at once
credit.py       what the two ends say to each other
connection.py   sockets, addresses, and whether anybody is at the other end
wire.py         a message as bytes (ipc, tcp)
slots.py        pixels in shared memory (ipc)
handles.py      objects on their way within this process (inproc)
"""

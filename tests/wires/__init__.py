"""Wires under load: Socket.IO clients by the written protocols against a hub that is spread over workers.

__main__        `make wires`: options, the table, the exit status
rig             a hub, its load processes and the publisher, started together; one wire after another
load            one process of clients; stock.mjs is the same with npm socket.io-client
engine          Engine.IO and Socket.IO of a client, on bare requests: what the load consists of
receivers       the same messages on the hub's other wires: native, SSE, long polling
events checker  what all of them write down; what of it is a fault
wires_app       the application that the hub loads: it acknowledges events with what it has seen
"""

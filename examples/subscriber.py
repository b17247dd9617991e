"""Print who is seen where. Needs only pyzmq: subscriber.py ENDPOINT [STREAM [KEY SERVER_KEY]]"""

import json
import sys

import zmq
from zmq.auth import load_certificate

endpoint, stream, *keys = [*sys.argv[1:], *["tcp://127.0.0.1:5556", ""][len(sys.argv) - 1 :]]

socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 2)  # rather miss messages than see old ones
if keys:  # alice.key_secret server.key, from who runs the publisher
    socket.curve_publickey, socket.curve_secretkey = load_certificate(keys[0])
    socket.curve_serverkey, _ = load_certificate(keys[1])
socket.subscribe(f"pose/{stream}/" if stream else "pose/")  # the slash keeps cam1 from cam10
socket.connect(endpoint)
while True:
    topic, _, body = socket.recv().partition(b"\0")
    poses = json.loads(body)
    print(f"{poses['stream']} frame {poses['frame']}: {len(poses['people'])} people", flush=True)
    for person in poses["people"]:
        seen = sum(score > 0 for _, _, score in person["keypoints"])
        print(f"  id {person['id']} score {person['score']} box {person['bbox']} points {seen}")

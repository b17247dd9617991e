"""Print who is seen where. Needs only pyzmq: python subscriber.py tcp://127.0.0.1:5556 [stream]"""

import json
import sys

import zmq

endpoint = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5556"
stream = f"{sys.argv[2]}/" if len(sys.argv) > 2 else ""  # the slash keeps cam1 apart from cam10

socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 2)  # rather miss messages than see old ones
socket.subscribe(f"pose/{stream}")
socket.connect(endpoint)
while True:
    topic, _, body = socket.recv().partition(b"\0")
    poses = json.loads(body)
    print(f"{poses['stream']} frame {poses['frame']}: {len(poses['people'])} people", flush=True)
    for person in poses["people"]:
        seen = sum(score > 0 for _, _, score in person["keypoints"])
        print(f"  id {person['id']} score {person['score']} box {person['bbox']} points {seen}")

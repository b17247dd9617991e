"""The stream: stages in threads, joined by ZeroMQ queues. A frame walks from top to bottom.

    decoder.py      a source (file, folder, URL, camera, pattern, demo) -> Frame; sources/: its
                    kinds, how they fail and come back, and the set of them
      |             ---- queue `frames`: wait (files) or drop_oldest (live); may be cut ----
    preprocess.py   the newest Frame of every ready source -> NetInput, a batch
    inference.py    NetInput -> NetOutput: heatmaps and tags
    poses.py        NetOutput -> Poses: people in picture pixels
    tracker.py      Poses -> Poses with ids that last and smoothed keypoints; tracks.py: its maths
      |             ---- queue `poses`, one for each sink: wait or drop_oldest; may be cut ----
    video_sink.py   Poses -> videos, drawn or clean       viewer.py     Poses -> window
    recorder.py     Poses -> JSON lines, OpenPose, COCO   publisher.py  Poses -> ZeroMQ
    page/           Poses -> a page in the browser

What they stand on:

    stream.py       which stage runs where; starts, watches and stops them all
    stop_request.py Ctrl-C, SIGTERM
    processes.py    the parts of a cut stream that are processes of their own
    meeting.py      where they meet: addresses checked, who does not come; addresses.py: advice
    stage.py        the loop that all stages share
    queues.py       the sockets between stages; wire.py and slots.py: messages between processes
    messages.py     what crosses the queues; schema.py: what subscribers see
    config.py       what a stream can be told
    admission.py    who may subscribe, with curve.py: keys; overflows.py: what subscribers missed
    stats.py        latency, drops, queue depth; progress.py: the line that a user sees
    load/           the latency contract: frames too old, what too much load costs, whose turn it is
    redaction.py    passwords out of sight
    network.py      what the stages between frames and poses do; card.py: their path on a card
    placement.py    which devices run the network, and which source is on which card
    overlay.py      skeletons drawn over a picture
    recording/      video files: whole after a kill, in segments, past a full disk
    selftest/       checks a machine, on a card or without one
"""

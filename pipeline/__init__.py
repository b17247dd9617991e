"""The stream: stages in threads, joined by ZeroMQ queues. A frame walks from top to bottom.

    sources/        a file, folder, URL, camera, pattern or the demo -> Frame
      |             ---- queue `frames`: wait (files) or drop_oldest (live); may be cut ----
    preprocess.py   the newest Frame of every ready source -> NetInput, a batch
    inference.py    NetInput -> NetOutput: heatmaps and tags
    poses.py        NetOutput -> Poses: people in picture pixels
    tracker.py      Poses -> Poses with ids that last and smoothed keypoints; tracks.py: its maths
      |             ---- queue `poses`, one for each sink: wait or drop_oldest; may be cut ----
    sinks/          Poses -> videos, files, a window, ZeroMQ subscribers, a page

What they stand on:

    stream.py       builds the stream from top to bottom; starts, watches and stops its stages
    stages.py       makes the stages; queues.py: what joins them
    network.py      what the stages between frames and poses do
    messages.py     what crosses the queues
    config.py       the settings of a stream
    runtime/        the loop of all stages, queues, processes, statistics, the latency contract
    gpu/            a batch's way over a GPU, video decoded there, which source is on which GPU
    selftest/       checks a machine, with or without a GPU
"""

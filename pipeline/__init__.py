"""The stream: stages in threads, joined by ZeroMQ queues. A frame walks from top to bottom.

    decoder.py      a source (file, folder, URL, camera, pattern, demo) -> Frame
      |             ---- queue `frames`: wait (files) or drop_oldest (live); may be cut ----
    preprocess.py   the newest Frame of every ready source -> NetInput, a batch
    inference.py    NetInput -> NetOutput: heatmaps and tags
    poses.py        NetOutput -> Poses: people in picture pixels
      |             ---- queue `poses`, one for each sink: wait or drop_oldest; may be cut ----
    overlay.py      Poses -> video with skeletons         viewer.py     Poses -> window
    recorder.py     Poses -> JSON lines, OpenPose, COCO   publisher.py  Poses -> ZeroMQ

What they stand on:

    stream.py       which stage runs where; starts, watches and stops them all
    processes.py    the parts of a cut stream that are processes of their own
    stage.py        the loop that all stages share
    queues.py       the sockets between stages; wire.py and slots.py: messages between processes
    messages.py     what crosses the queues; schema.py: what subscribers see
    config.py       what a stream can be told
    stats.py        latency, drops, queue depth; progress.py: the line that a user sees
    av_video.py     FFmpeg's side of decoding; video_writer.py: of writing; outputs.py: paths
    demo.py         the picture of the `demo` source
"""

"""The stream: stages in threads, joined by ZeroMQ queues. A frame walks from top to bottom.

    decoder.py      a source (file, folder, URL, camera, pattern, demo) -> Frame; its kinds:
                    file_source.py, live_source.py, drawn_source.py; what they share: source.py
      |             ---- queue `frames`: wait (files) or drop_oldest (live); may be cut ----
    preprocess.py   the newest Frame of every ready source -> NetInput, a batch
    inference.py    NetInput -> NetOutput: heatmaps and tags
    poses.py        NetOutput -> Poses: people in picture pixels
    tracker.py      Poses -> Poses with ids that last and smoothed keypoints; tracks.py: its maths
      |             ---- queue `poses`, one for each sink: wait or drop_oldest; may be cut ----
    video_sink.py   Poses -> videos, drawn or clean       viewer.py     Poses -> window
    recorder.py     Poses -> JSON lines, OpenPose, COCO   publisher.py  Poses -> ZeroMQ
    page.py         Poses -> a page in the browser

What they stand on:

    stream.py       which stage runs where; starts, watches and stops them all
    source_set.py   its sources, which come and go; counted.py: what is counted on the way;
                    stop_request.py: Ctrl-C, SIGTERM
    processes.py    the parts of a cut stream that are processes of their own
    stage.py        the loop that all stages share
    queues.py       the sockets between stages; wire.py and slots.py: messages between processes
    messages.py     what crosses the queues; schema.py: what subscribers see
    config.py       what a stream can be told
    admission.py    who may subscribe, with curve.py: keys; overflows.py: what subscribers missed
    page_server.py  HTTP of the page, with page_security.py, page_viewers.py, page_api.py, static/
    stats.py        latency, drops, queue depth; progress.py: the line that a user sees
    contract.py     how old frames may be, what too much load costs; shedding.py: frames that are
                    left; turns.py: so that each source has its turn; load_control.py: what to
                    give up, and when to come back
    source_state.py how a source is doing; timeline.py: times that rise, max_fps
    redaction.py    passwords out of sight
    av_video.py     FFmpeg's side of decoding, card_video.py: on a card; video_writer.py: of
                    writing; outputs.py: paths
    placement.py    which devices run the network, and which source is on which card
    overlay.py      skeletons drawn over a picture
    segments.py     one video file after another, also past a full disk; segment_index.py: the list
    demo.py         the picture of the `demo` source
    selftest/       checks a machine, on a card or without one
"""

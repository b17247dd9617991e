"""The stream: stages in threads, joined by ZeroMQ queues. A frame walks from top to bottom.

    decoder.py      a source (file, folder, URL, camera, pattern, demo) -> Frame       } part: sources
      |   queue `frames`: wait (files) or drop_oldest (live); may be cut (ipc, tcp)
    preprocess.py   the newest Frame of every ready source -> NetInput, a batch        } part: network
    inference.py    NetInput -> NetOutput: heatmaps and tags                           }
    poses.py        NetOutput -> Poses: people in picture pixels                       }
      |   queue `poses`, one for each sink: wait or drop_oldest; may be cut (ipc, tcp)
    overlay.py      Poses -> video with skeletons         viewer.py   -> window        } part: sinks
    recorder.py     Poses -> JSON lines, OpenPose, COCO   publisher.py -> ZeroMQ       }

    messages.py     what crosses the queues               schema.py   what subscribers see
    queues.py       the sockets between stages            stage.py    the loop that all stages share
    config.py       what a stream can be told             stats.py    latency, drops, queue depth
    stream.py       which stage runs where; starts, watches and stops them all
    demo.py         the picture of the `demo` source
"""

"""Video on the disk: whole after a kill, in segments, past a full disk.

video_writer.py   FFmpeg's side of writing    segments.py       one file after another
segment_index.py  the list of them            outputs.py        paths
"""

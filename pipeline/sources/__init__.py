"""Where frames come from. decoder.py runs one source; what is common to all kinds: source.py.

file_source.py   files and folders           live_source.py  cameras, RTSP, HTTP, RTMP
drawn_source.py  testsrc, demo (demo.py)     source_set.py   those of a stream

av_video.py      FFmpeg's side of decoding; gpu_video.py: on a GPU
source_state.py  how a source is doing       timeline.py     times that rise, max_fps
counted.py       what is counted on the way
"""

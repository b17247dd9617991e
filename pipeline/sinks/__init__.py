"""Where poses go: videos, files, a window, ZeroMQ subscribers, a page in the browser.

table.py      all sinks, a row each            sink.py        what a sink is, also a user's own
files.py      JSON lines, OpenPose, COCO       outputs.py     paths, and who may write them
line_file.py  a file that grows by lines       unwritten.py   a disk that cannot be written
video/        recordings, in segments          schema.py      messages that subscribers see
publisher/    ZeroMQ                           overlay.py     poses drawn over their picture
page/         a page in the browser            window.py      a window on this screen
tables.py     CSV and Parquet
"""

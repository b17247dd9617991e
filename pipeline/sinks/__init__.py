"""Where poses go: videos, files, a window, ZeroMQ subscribers, a page in the browser.

table.py        all sinks, a row each            sink.py       what a sink is, also one of the user's
files.py        JSON lines, OpenPose, COCO       outputs.py    paths, and who may write them
video/          recordings, in segments          schema.py     messages that subscribers see
publisher/      ZeroMQ                           overlay.py    poses drawn over their picture
page/           a page in the browser            window.py     a window on this screen
"""

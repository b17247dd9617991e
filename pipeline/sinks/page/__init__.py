"""A page in the browser: every camera live, states, numbers; sources added and removed.

page.py          the sink: Poses -> newest picture and people of each camera
page_server.py   HTTP and WebSocket; page_security.py: who may; page_viewers.py: who looks
page_api.py      /api/streams                static/         HTML, CSS, JS
"""

"""Where poses go: videos, files, a window, ZeroMQ subscribers, a page in the browser."""

"""A function on Lambda's own runtime for Python. It keeps one connection, through which the test sees what it does and when."""

import os
import signal
import socket
import sys
import threading
import time
import urllib.request

host, port = os.environ["SERVER"].split(":")
connection = socket.create_connection((host, int(port)))
connection.sendall(b"hello\n")


def tick():
    while True:
        connection.sendall(b"tick\n")
        time.sleep(0.02)


def register():
    api = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2020-01-01/extension"
    headers = {"Lambda-Extension-Name": "python"}
    request = urllib.request.Request(f"{api}/register", b'{"events":[]}', headers)
    with urllib.request.urlopen(request) as registered:
        headers = {"Lambda-Extension-Identifier": registered.headers["Lambda-Extension-Identifier"]}
    # Never answered.
    poll = urllib.request.Request(f"{api}/event/next", headers=headers)
    threading.Thread(target=urllib.request.urlopen, args=[poll], daemon=True).start()


def stop(signum, frame):
    connection.sendall(b"bye\n")
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
threading.Thread(target=tick, daemon=True).start()
if os.environ.get("REGISTER"):
    register()


def handler(event, context):
    connection.sendall(b"query\n")
    return event

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the gateway is compared with: the least HTTP server that loads and unloads modules by modprobe and rmmod.

Run as root, answers the gateway's two paths with the same sentences, on connections that are kept. It knows no token, no
policy and nobody who asks; it leaves out all that costs time. Answers are written at once, without waiting for
acknowledgements, and processes are started without a shell.
"""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMANDS = {"load": "modprobe", "unload": "rmmod"}


class Handler(BaseHTTPRequestHandler):
    """`POST /module/load/NAME` and `POST /module/unload/NAME`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        """One process, one answer."""
        _, _, action, module = self.path.split("/")
        done = subprocess.run([COMMANDS[action], module], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        said = f"Module {module} {action}ed successfully" if not done.returncode else done.stderr.decode()
        body = json.dumps({"message": said, "module": module}).encode()
        self.send_response(500 if done.returncode else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Nothing: the journal is not what is compared."""


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()

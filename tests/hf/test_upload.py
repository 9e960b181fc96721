"""`hf upload` of a folder to a stand-in of the hub: what the real client sends, and what is there in the end."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import rinalmo


class Hub(BaseHTTPRequestHandler):
    """The hub's endpoints for an upload; files are kept by their path."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address, large = f"http://127.0.0.1:{self.server.server_port}", self.server.large
        if self.path == "/api/repos/create":
            self._say({"url": f"{address}/you/model"})
        elif self.path == "/api/validate-yaml":
            self.server.cards.append(yaml.safe_load(json.loads(body)["content"].split("---\n")[1]))
            self._say({"errors": [], "warnings": []})
        elif self.path == "/api/models/you/model/preupload/main":
            files = json.loads(body)["files"]
            for each in files:
                large_one = each["path"].endswith(".safetensors")
                each.update(uploadMode="lfs" if large_one else "regular", shouldIgnore=False)
            self._say({"files": files})
        elif self.path == "/you/model.git/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{address}/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._say({"transfer": "basic", "objects": objects})
        elif self.path == "/api/models/you/model/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = large[value["oid"]]
            self._say({"commitUrl": f"{address}/you/model/commit/1", "commitOid": "1" * 40})

    def do_PUT(self):
        self.server.large[self.path[1:]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._say({})

    def log_message(self, *arguments):
        """Nothing."""

    def _say(self, answer):
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.large, server.cards = {}, {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_folder_is_uploaded_as_it_is(hub, tmp_path):
    """The command of docs/hugging_face.md, on what `pretrain` wrote; the hub is given a card that it can read."""
    folder = Path(rinalmo.resolve("nano"))
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",  # its storage is another protocol; servers without it are sent plain files
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_none",
    }
    command = [Path(sys.executable).with_name("hf"), "upload", "you/model", folder]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"} <= hub.files.keys()
    card = hub.cards[0]
    assert (card["library_name"], card["pipeline_tag"], card["mask_token"]) == ("rinalmo", "fill-mask", "<mask>")
    assert [example["example_title"] for example in card["widget"]] == ["HIV-1", "microRNA-21"]

"""The program on ``docs/files.md`` works as printed."""

import gzip
import shlex
import sys
from pathlib import Path

from tests.docs.pages import block, page

from molecule_connect import FilePart
from molecule_connect.testing import make_request, running

PAGE = page("files.md")


async def test_program_sends_each_file_back_compressed(tmp_path: Path) -> None:
    (tmp_path / "compress.py").write_text(block(PAGE, "python", "# compress.py"))
    received = tmp_path / "received-a_b.txt"
    received.write_bytes(b"content")
    request = make_request(
        "please",
        parts=(FilePart(uri="platform:1", name="a/b.txt", path=received), FilePart(uri="platform:2", name="c")),
    )
    options = {"cmd": f"{shlex.quote(sys.executable)} compress.py", "format": "json", "cwd": str(tmp_path)}

    async with running("exec", options) as backend:
        response = await backend.ask(request)

    (sent,) = [part for part in response.parts if isinstance(part, FilePart)]
    assert response.text == "here you are"
    assert sent.name == "a/b.txt.gz"
    assert sent.path is not None
    assert gzip.decompress(sent.path.read_bytes()) == b"content"

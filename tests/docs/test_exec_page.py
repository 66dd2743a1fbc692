"""``docs/exec.md`` and the code say the same, and its examples answer."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.docs.pages import DOCS, block, page

from molecule_connect.errors import BackendError
from molecule_connect.plugins.discovery import find, load
from molecule_connect.plugins.entry_points import BACKENDS
from molecule_connect.plugins.options import describe
from molecule_connect.testing import running

PAGE = page("exec.md")
README = (DOCS.parent / "plugins" / "exec" / "README.md").read_text()


@pytest.mark.parametrize("text", [PAGE.partition("## Text mode")[0], README], ids=["page", "readme"])
def test_every_option_is_told_with_its_default(text: str) -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| (?:`(\S+)`)? ?\|", text, re.MULTILINE))
    options = describe(load(find(BACKENDS, "exec"))) or ()

    # A 0 that switches off is 0s to an operator who reads the list of options.
    assert told == {field.key: {"0s": "0"}.get(field.default or "", field.default or "") for field in options}


@pytest.mark.parametrize("language", ["python", "sh"])
async def test_an_example_answers_as_the_page_says(tmp_path: Path, language: str) -> None:
    if language == "sh" and shutil.which("jq") is None:
        pytest.skip("there is no jq")
    file = tmp_path / "answer"
    file.write_text(block(PAGE, language))
    cmd = f"{sys.executable if language == 'python' else 'sh'} {file}"

    async with running("exec", {"cmd": cmd, "format": "json"}) as backend:
        assert (await backend.ask("one two three")).text == "3 words"
        assert (await backend.ask("thanks")).is_silent
        with pytest.raises(BackendError, match="nothing to count") as caught:
            await backend.ask("")

    assert not caught.value.retryable
    assert backend.progress == ["counting"] * 3

import os
import stat
from pathlib import Path

import pytest

from molecule_connect.config.tokens import check_token, read_token_file
from molecule_connect.errors import ConfigError
from molecule_connect.platform.credentials import Credentials

HERE = "https://platform.example"


def token_file(folder: Path, text: str, *, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def given(folder: Path | None = None, *, token: str | None = "first-token", origin: str = HERE) -> Credentials:
    return Credentials("ws-1", origin=origin, token=token, source="--token", state_dir=folder)


def test_token_file_faults_have_distinct_messages(tmp_path: Path) -> None:
    messages = []
    for text, mode in ((None, 0), (" \n", 0o600), ("one-token\ntwo-token\n", 0o600), ("a-token\n", 0o604)):
        path = tmp_path / "missing" if text is None else token_file(tmp_path, text, mode=mode)
        with pytest.raises(ConfigError) as caught:
            read_token_file(path)
        assert caught.value.hint
        assert "-token" not in str(caught.value)
        messages.append(str(caught.value).replace(str(path), ""))

    assert [message.split(" ", 3)[3].strip() for message in messages] == [
        "does not exist",
        "contains no token",
        "has 2 lines",
        "is open to others (mode 0604)",
    ]


@pytest.mark.parametrize(("mode", "is_refused"), [(0o640, False), (0o440, False), (0o660, True), (0o602, True)])
def test_group_may_only_read_a_token_file(tmp_path: Path, mode: int, is_refused: bool) -> None:
    path = token_file(tmp_path, "a-token\n", mode=mode)
    if is_refused:
        with pytest.raises(ConfigError, match="open to others"):
            read_token_file(path)
    else:
        assert read_token_file(path) == "a-token"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_rejects_token_file_of_another_user(tmp_path: Path) -> None:
    path = token_file(tmp_path, "a-token\n")
    os.chown(path, 54321, 54321)
    with pytest.raises(ConfigError, match="belongs to user 54321") as caught:
        read_token_file(path)
    assert f"chown root {path}" in caught.value.hint


def test_token_file_may_be_a_link(tmp_path: Path) -> None:
    token_file(tmp_path, "a-token\n", mode=0o440)
    (tmp_path / "link").symlink_to("token")
    assert read_token_file(tmp_path / "link") == "a-token"


def test_stored_token_is_not_read_through_link(tmp_path: Path) -> None:
    given(tmp_path).keep("kept-token")
    kept = tmp_path / "ws-1.token"
    kept.chmod(0o660)
    assert given(tmp_path, token=None).current() == "kept-token"
    kept.rename(tmp_path / "elsewhere")
    kept.symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="not a plain file") as caught:
        given(tmp_path, token=None).current()
    assert caught.value.hint
    assert given(tmp_path).after_refusal("first-token") is None


def test_a_token_file_of_windows_is_read(tmp_path: Path) -> None:
    assert read_token_file(token_file(tmp_path, "\ufeffa-token\r\n\r\n")) == "a-token"


def test_rejects_folder_or_binary_as_token_file(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")

    for path in (tmp_path, tmp_path / "bytes"):
        with pytest.raises(ConfigError, match="token file"):
            read_token_file(path)


def test_device_as_token_file_needs_no_mode() -> None:
    with pytest.raises(ConfigError, match="the token file /dev/null contains no token") as caught:
        read_token_file(Path("/dev/null"))

    assert "chmod" not in caught.value.hint


@pytest.mark.parametrize(
    "token",
    [
        "<paste token here>",
        "YOUR_TOKEN",
        "your-workspace-token",
        "paste-token",
        "...",
        "…",
        "$TOKEN",
        "${X}",
        "xxxx",
        "",
    ],
)
def test_a_placeholder_is_found_before_any_request(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_token(token, source="--token")

    assert "--token" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("token", ["a\nb", "Bearer abc", "tok en", "tokén", "a\x00b"])
def test_invalid_token_is_rejected_without_quoting(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_token(token, source="--token")

    assert token not in str(caught.value)


@pytest.mark.parametrize("token", ["t", "tok-1", "pE8xq2mJv0c7Yh3nKd5sWb9tRz1uLf4gAaQ6iOeXyZk", "_-x", " padded "])
def test_whatever_can_be_a_token_is_taken(token: str) -> None:
    assert check_token(token, source="--token") == token.strip()


def test_missing_token_has_a_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        given(token=None).current()

    assert "ws-1" in str(caught.value)
    assert "MOLECULE_WORKSPACE_TOKEN" in caught.value.hint


def test_unreadable_token_file_is_an_error(tmp_path: Path) -> None:
    given(tmp_path).keep("kept-token")

    with pytest.raises(ConfigError, match="does not exist"):
        Credentials("ws-1", origin=HERE, token_file=tmp_path / "missing", state_dir=tmp_path).current()


def test_changed_file_is_reread_after_refusal(tmp_path: Path) -> None:
    path = token_file(tmp_path, "old-token")
    credentials = Credentials("ws-1", origin=HERE, token_file=path)

    assert credentials.current() == "old-token"
    assert credentials.after_refusal("old-token") is None
    token_file(tmp_path, "new-token")
    assert credentials.after_refusal("old-token") == "new-token"
    assert credentials.current() == "new-token"


def test_vanished_file_gives_no_other_token(tmp_path: Path) -> None:
    path = token_file(tmp_path, "old-token")
    credentials = Credentials("ws-1", origin=HERE, token_file=path)
    credentials.current()
    path.unlink()

    assert credentials.after_refusal("old-token") is None


def test_issued_token_is_stored_and_used(tmp_path: Path) -> None:
    credentials = given(tmp_path)
    credentials.current()
    credentials.keep("handed-out-token")
    kept = tmp_path / "ws-1.token"

    assert credentials.current() == "handed-out-token"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert read_token_file(kept) == "handed-out-token"
    assert [path.name for path in tmp_path.iterdir()] == ["ws-1.token"]


def test_stored_and_given_tokens_replace_each_other(tmp_path: Path) -> None:
    given(tmp_path).keep("kept-token")
    credentials = given(tmp_path)

    assert credentials.current() == "first-token"
    assert credentials.after_refusal("first-token") == "kept-token"
    assert credentials.after_refusal("kept-token") == "first-token"


def test_late_refusal_returns_the_current_token(tmp_path: Path) -> None:
    credentials = given(tmp_path)
    credentials.current()
    credentials.keep("kept-token")

    assert credentials.after_refusal("first-token") == "kept-token"


def test_a_kept_token_alone_is_enough(tmp_path: Path) -> None:
    given(tmp_path).keep("kept-token")

    assert given(tmp_path, token=None).current() == "kept-token"


def test_stored_token_of_other_origin_is_ignored(tmp_path: Path) -> None:
    given(tmp_path, origin="https://other.example").keep("kept-token")

    assert given(tmp_path).after_refusal("first-token") is None


def test_token_that_cannot_be_stored_is_used(tmp_path: Path) -> None:
    credentials = given(tmp_path / "no-folder")

    with pytest.raises(ConfigError, match="cannot be kept") as caught:
        credentials.keep("handed-out-token")

    assert credentials.current() == "handed-out-token"
    assert "handed-out-token" not in str(caught.value)


def test_tokens_are_redacted(tmp_path: Path) -> None:
    credentials = given(tmp_path)
    credentials.current()
    credentials.keep("kept-token")

    assert "token'" not in repr(credentials).replace("'--token'", "")
    assert credentials.redact("a first-token b kept-token") == "a *** b ***"

import pytest

from molecule_connect.file_names import pending_id, pending_uri, safe_name, type_by_name


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("alpha.txt", "alpha.txt"),
        ("../../etc/passwd", "passwd"),
        ("/", "file"),
        ("", "file"),
        (".", "file"),
        ("..", "file"),
        ("...", "..."),
        ("my file.txt", "my_file.txt"),
        ("a\0b", "a_b"),
        ('x"\r\ny: z', "x___y__z"),
        ("größe.png", "gr__e.png"),
        ("a\\b.txt", "a_b.txt"),
        ("x" * 300, "x" * 100),
        ("x" * 300 + ".jpeg", "x" * 95 + ".jpeg"),
        ("x" * 300 + "." + "y" * 15, "x" * 84 + "." + "y" * 15),
        ("x" * 90 + "." + "y" * 16, "x" * 90 + "." + "y" * 9),
        (".bashrc", ".bashrc"),
        ("." + "x" * 200, "." + "x" * 99),
    ],
)
def test_a_name_is_made_harmless_as_the_platform_does_it(given: str, safe: str) -> None:
    assert safe_name(given) == safe


@pytest.mark.parametrize(
    ("uri", "file_id"),
    [
        ("platform-pending:ws-1/F1", "F1"),
        ("platform-pending:ws-1/8f14e45f-ceea-467f-a1d0-6f6f6f6f6f6f", "8f14e45f-ceea-467f-a1d0-6f6f6f6f6f6f"),
        ("platform-pending:ws-1/..", None),
        ("platform-pending:ws-1/a/b", None),
        ("platform-pending:ws-1/a?b", None),
        ("platform-pending:ws-1/", None),
        ("platform-pending:F1", None),
        ("https://host/platform-pending:ws-1/F1", None),
        ("", None),
    ],
)
def test_only_the_address_of_an_upload_names_one(uri: str, file_id: str | None) -> None:
    assert pending_id(uri) == file_id


def test_an_address_made_of_ids_names_the_upload() -> None:
    assert pending_id(pending_uri("ws-1", "F1")) == "F1"


@pytest.mark.parametrize("name", ["//[draft] plan.pdf", "http://[x.pdf", "data:text/html,x.pdf", "a\0b/\ud800.pdf"])
def test_a_name_like_an_address_has_the_type_of_its_extension(name: str) -> None:
    assert type_by_name(name) == "application/pdf"


def test_a_name_without_a_known_extension_has_no_type() -> None:
    assert type_by_name("plan.unknown") == type_by_name("") == ""

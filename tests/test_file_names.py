import pytest

from molecule_connect.file_names import safe_name


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
        ("x" * 300 + "." + "y" * 16, "x" * 83 + "." + "y" * 16),
        ("x" * 90 + "." + "y" * 17, "x" * 90 + "." + "y" * 9),
        (".bashrc", ".bashrc"),
        ("." + "x" * 200, "." + "x" * 99),
    ],
)
def test_a_name_is_made_harmless_as_the_platform_does_it(given: str, safe: str) -> None:
    assert safe_name(given) == safe

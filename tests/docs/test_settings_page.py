"""``docs/settings.md`` has a row for each setting, made from the schema."""

from tests.docs.pages import page

from molecule_connect.config.settings import SCHEMA, Setting

PAGE = page("settings.md")


def row(name: str, setting: Setting) -> str:
    flag = setting.flag or ("WORKSPACE_ID" if name == "workspace_id" else "")
    meaning = f"{setting.help} Range: {setting.bounds}." if setting.bounds else setting.help
    ways = [
        ", ".join(f"`{way}`" for way in ways if way) for ways in ((flag,), setting.variables, (setting.key,), (name,))
    ]
    return "| " + " | ".join([*ways, setting.shown_default, meaning]) + " |"


def table() -> str:
    head = "| flag | variable | key | field | default | meaning |"
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- |", *(row(*item) for item in SCHEMA.items())])


def test_table_matches_schema() -> None:
    assert table() in PAGE, f"replace the table with:\n{table()}"


def test_every_setting_is_described() -> None:
    assert [name for name, setting in SCHEMA.items() if not setting.help.endswith(".")] == []

"""docs/constants.md is what docs/make_constants.py would write now, and every rule says its constants."""

import importlib.util
from pathlib import Path

import lipcert

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_constants", DOCS / "make_constants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = (DOCS / "constants.md").read_text(encoding="utf-8")
    assert committed == module.page(), "run python docs/make_constants.py"


def test_every_rule_is_on_the_page_with_a_summary() -> None:
    text = (DOCS / "constants.md").read_text(encoding="utf-8")
    for info in lipcert.supported_ops():
        assert info.summary, info.name
        assert f"`{info.name}`" in text

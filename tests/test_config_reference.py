"""docs/config.md, which is written from the schema."""

from pathlib import Path

import pytest

from fastdgl.config import FAMILIES, Section, read
from fastdgl.config_reference import descriptions, reference

ROOT = Path(__file__).parents[1]


def test_the_page_is_that_of_the_schema():
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference(), \
        "the schema has changed: write the page anew by `python -m fastdgl.config_reference > docs/config.md`"


def test_every_key_says_what_it_is():
    for line in reference().splitlines():
        if line.startswith("| `"):
            assert line.count("|") - line.count("\\|") == 5, line
            assert not line.endswith("|  |"), line


def test_defaults_and_bounds_are_those_that_configs_are_read_by():
    text = reference()
    assert "| `lr` | number above 0 and at most 1 | `0.002` (stylegan2), `0.0001` (biggan) | Learning rate. |" in text
    assert "| `conv_clamp` | number above 0, or null | `256` |" in text
    assert "| `adversarial` | `hinge` | `hinge` |" in text


def test_links_lead_to_headings():
    text = reference()
    headings = {line.removeprefix("## ").replace("`", "").replace(".", "").replace(" ", "-").lower() for line in text.splitlines() if line.startswith("## ")}
    links = {part.partition(")")[0] for part in text.split("(#")[1:]}
    assert links and links <= headings


def test_a_docstring_of_several_keys_and_lines_describes_each_of_them():
    class Example(Section):
        """An example.

        a, b: Two numbers, of which
            the second is larger.
        c: Another.

        d: stands apart.
        """

        a: int = 0
        b: int = 1
        c: int = 2
        e: int = 3

    assert descriptions(Example) == {"a": "Two numbers, of which the second is larger.", "b": "Two numbers, of which the second is larger.", "c": "Another."}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_config_has_a_key_that_the_page_lacks(path):
    text = reference()
    for config in read(path):
        assert type(config) in FAMILIES.values()
        assert all(f"`{key}`" in text for key in config.model_fields_set)

"""Templates escape what they are given, and refuse to render without a value that they use."""

from __future__ import annotations

import pytest

from benchmark.templates import render


def test_text_is_escaped_and_rendered_html_is_not() -> None:
    page = render("report/sheets.html.jinja", title="<script>", sections=[("a & b", "<p>rendered</p>")])
    assert page.startswith("<!doctype html>\n") and page.endswith("</html>\n")
    assert "<script" not in page and page.count("&lt;script&gt;") == 2  # the title and the heading
    assert "a &amp; b" in page and "<p>rendered</p>" in page


def test_a_missing_value_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("report/sheets.html.jinja", sections=[])

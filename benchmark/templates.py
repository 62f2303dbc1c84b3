"""HTML from templates: each `*.html.jinja` file lies in the package `benchmark`, beside the code that renders it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """The template, a path inside the package such as `report/report.html.jinja`, filled with the values.

    Every value is escaped, except where the template says `| safe`: there it takes what another `render` returned.
    Raises jinja2.UndefinedError for a value that the template uses and nobody gave.
    """
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("benchmark", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

"""The templates of the pages: one set of filters, every text escaped.

Flows in: names of folders of templates. Flows out: an environment that has them all.
"""

from __future__ import annotations

from datetime import datetime
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def templates(*packages: str) -> Environment:
    """Give the templates of `<package>/pages`, of the audit's pages too."""
    loaders = [PackageLoader(package, "pages") for package in (*packages, "camray.audit")]
    pages = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"thousands": lambda v: f"{v:,}", "address": quote, "date": date_of}
    pages.filters |= {"share": lambda v: f"{v:.2%}"}
    return pages


def date_of(run_id: str) -> str:
    """Read when a run started from its name, for people; the name itself where it says no time."""
    try:
        return f"{datetime.strptime(run_id.partition('-')[0], '%Y%m%dT%H%M%SZ'):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return run_id

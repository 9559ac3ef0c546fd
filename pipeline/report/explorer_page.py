"""The explorer as pages: inside the report while it is small, else one page for each pair of sites in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from pipeline.report.explorer_data import ExplorerData, explorer_data
from pipeline.report.results import Run, SitePair
from pipeline.report.templating import content_policy, environment, explorer_scripts
from storage.derived import replace_pages
from storage.files import remove_folder, temporary_path, write_text

#: Bytes of data up to which the explorer stands in the report itself, so that it can still be sent by mail.
MOST_INLINE = 20_000_000


@dataclass(frozen=True)
class ExplorerLink:
    """A page of the explorer's folder, as the report refers to it."""

    href: str
    title: str
    pairs: int


@dataclass(frozen=True)
class ExplorerView:
    """What the report shows of the explorer: its data, or links to its pages."""

    data: ExplorerData | None
    links: list[ExplorerLink]

    def addresses(self, site_pairs: Sequence[SitePair], page: str = "") -> dict[tuple[str, str], str]:
        """Return where the explorer shows each pair of sites, for a link in the report, or in a page beside `page`."""
        pages = [link.href for link in self.links] or [page] * len(site_pairs)
        sites = [(pair.a.name, pair.b.name) for pair in site_pairs]
        return {
            (a, b): f"{one}#{urlencode({'a': a, 'b': b}, quote_via=quote)}"
            for (a, b), one in zip(sites, pages, strict=True)
        }


def write_explorer(run: Run) -> ExplorerView:
    """Gather the explorer's data; beyond :data:`MOST_INLINE` bytes, write a folder with a page for each pair of sites.

    A folder that is no longer needed is removed.
    """
    data = explorer_data(run, run.site_pairs)
    folder = run.directory.explorer
    if data.size <= MOST_INLINE:
        replace_pages(folder, None)
        return ExplorerView(data, [])
    del data
    return ExplorerView(None, list(_write_folder(run, folder)))


def _write_folder(run: Run, folder: Path) -> Iterator[ExplorerLink]:
    """Write all pages beside the old ones, then put them in their place."""
    new = temporary_path(folder, "new")
    new.mkdir()
    try:
        for i, pair in enumerate(run.site_pairs):
            name = f"{i + 1}.html"
            write_text(new / name, render_explorer(run, pair))
            yield ExplorerLink(f"{folder.name}/{name}", _title(pair), int(pair.pairs.sizes["pair"]))
        replace_pages(folder, new)
    finally:
        remove_folder(new)


def _title(pair: SitePair) -> str:
    return f"{pair.a.name} – {pair.b.name}"


def render_explorer(run: Run, pair: SitePair) -> str:
    """Return the explorer of one pair of sites as a page of its own."""
    scripts, view = explorer_scripts(), ExplorerView(explorer_data(run, [pair]), [])
    template = environment().get_template("explorer_page.html.j2")
    return template.render(run=run, title=_title(pair), explorer=view, scripts=scripts, policy=content_policy(scripts))

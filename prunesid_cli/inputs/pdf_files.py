"""Pages of PDF documents: `a.pdf/page-0003`, drawn at 150 dpi, or `a.pdf/page-0003@300dpi`. PDFium draws them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from threading import Lock
from typing import BinaryIO

import pypdfium2  # type: ignore[import-untyped]

from prunesid_cli.inputs.containers import COPY_AGAIN, DEFAULT_DPI, Container, ContainerOptions
from prunesid_cli.inputs.decode_errors import MAX_PIXELS
from prunesid_cli.inputs.source import FolderEntry, MissingMemberError, SourceError
from prunesid_cli.types import Columns

PAGE = re.compile(r"page-(\d{1,9})(?:@(\d{1,5})dpi)?")
POINTS_PER_INCH = 72
LOCK = Lock()
"""PDFium may not be called by several threads at once."""


class PdfContainer(Container):
    """A PDF document; see `Container`. It is opened for each page: PDFium reads no more of it than it needs."""

    def __init__(self, path: str, size: int) -> None:
        """Count the pages.

        Raises:
            OSError: It is damaged, or needs a password.
        """
        self.path = path
        with self._open_document() as document:
            self.num_pages = len(document)
        self.page_bytes = size // max(self.num_pages, 1)

    @contextmanager
    def _open_document(self) -> Iterator[pypdfium2.PdfDocument]:
        with LOCK:
            try:
                with pypdfium2.PdfDocument(self.path) as document:
                    yield document
            except pypdfium2.PdfiumError as error:
                if "assword" in str(error):
                    hint = "save it without the password, for example with: qpdf --decrypt"
                    raise SourceError("the PDF document needs a password", hint) from error
                raise SourceError("a damaged PDF document, or another file", COPY_AGAIN) from error

    def list(self, folder: str, options: ContainerOptions) -> Iterator[FolderEntry]:
        if not self.num_pages:
            raise SourceError("a PDF document without pages", COPY_AGAIN)
        suffix = "" if options.dpi == DEFAULT_DPI else f"@{options.dpi}dpi"
        for number in range(1, self.num_pages + 1):
            yield FolderEntry(f"page-{number:04d}{suffix}", is_folder=False, is_link=False)

    def size(self, name: str) -> int | None:
        return self.page_bytes if self._find(name) else None

    def has_folder(self, name: str) -> bool:
        return not name

    def _find(self, name: str) -> tuple[int, int] | None:
        """Number of a page, from 1, and its resolution; None if there is no such page."""
        match = PAGE.fullmatch(name)
        if match is None or not 1 <= int(match[1]) <= self.num_pages:
            return None
        return int(match[1]), int(match[2] or DEFAULT_DPI)

    def open(self, name: str) -> BinaryIO:
        """The page as a BMP: a picture that costs no time to compress."""
        found = self._find(name)
        if found is None:
            raise MissingMemberError(f"the document has {self.num_pages:,} pages", "name one of them: page-0001")
        number, dpi = found
        with self._open_document() as document:
            page = document[number - 1]
            width, height = (max(1, round(side * dpi / POINTS_PER_INCH)) for side in page.get_size())
            if width * height > MAX_PIXELS:
                problem = f"the page has {width:,} x {height:,} pixels at {dpi} dpi, more than {MAX_PIXELS:,}"
                raise SourceError(problem, "choose a smaller --dpi")
            image = page.render(scale=dpi / POINTS_PER_INCH).to_pil().convert("RGB")
        data = BytesIO()
        image.save(data, "BMP")
        data.seek(0)
        return data

    def columns(self, name: str) -> Columns:
        return ()

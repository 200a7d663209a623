"""Listing: files, folders and globs -> the images and clips among them, one at a time, always in the same order.

A path that cannot be used is given with its error, which is not raised: a bad name does not end a run of thousands.
Names that are not valid UTF-8 stay `str` (surrogateescape) and pass through JSON unchanged.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.file_type import HEADER_BYTES, RAW_EXTENSIONS, FileType, detect_file_type, is_text
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.glob_paths import expand_glob, is_glob
from prunesid_cli.inputs.source import FileSource, FolderEntry, to_media_error
from prunesid_cli.types import Columns

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".hif"}
    | {".gif", ".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".ico", ".qoi"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".sgi", ".pcx", ".psd"}
)
VIDEO_EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".ogv", ".3gp", ".3g2"}
    | {".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".mxf"}
)
EXTENSIONS = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS | RAW_EXTENSIONS
"""Camera raw is listed, so that each such file is refused by name, and none is left out without a word."""
SHARED_EXTENSIONS = frozenset({".ts", ".mts"})
"""Extensions of clips that other files have, too: here TypeScript. They are clips unless they are text."""
HIDDEN, OTHER, LINK, REPEAT, EXCLUDED = "hidden file", "other file", "linked folder", "repeat", "filtered file"
OUTSIDE = "file with a name that leads out of its container"
FILE_MARK, LINK_MARK, FOLDER_MARK = "f", "l", "d"
SKIP_REASONS = {"h": HIDDEN, "o": OTHER, "x": LINK, "u": OUTSIDE}
"""Marks of entries of a folder that are skipped, and why."""
MarkedPath = tuple[str, str, str]
"""Path; real path, or any path of a link or a named file; mark."""


@dataclass(frozen=True)
class ListedFile:
    """A file to read, or a path that cannot be used.

    Attributes:
        source: Path as the user named it, or below a folder that the user named.
        error: Why the path cannot be used; None if it can.
        columns: What a table that names the file says of it.
    """

    source: str
    error: MediaError | None = None
    columns: Columns = ()


@dataclass(eq=False)
class Listing(Iterable[ListedFile]):
    """Each image or clip once: named files, what globs match, and in folders the files with a known extension.

    Named files are listed whatever their extension. Memory grows with the number of folders and of named files, not
    with the number of files in folders. A listing can be iterated once.

    Attributes:
        paths: Files, folders and globs; or rows of tables that name one, which may have an error.
        on_skip: Called with the reason and the path of everything that is skipped.
        on_folder: Called with each folder that could be read, and each glob that matched.
        is_wanted: Whether a file with this path is taken.
        files: Where the paths lead.
        skipped: Number of skipped paths by reason, final once the iteration has ended. `HIDDEN`: files and folders in
            folders. `OTHER`: files in folders that are no image or video by their extension, or, where other files have
            that extension, too, by their first bytes. `LINK`: links to folders inside
            folders, which are not followed, so that no loop is possible. `REPEAT`: paths to a file or folder that was
            listed before, or to a file that is listed with its folder. `OUTSIDE`: see `FolderEntry`. `EXCLUDED`: files
            that are not wanted.
    """

    paths: Iterable[str | ListedFile]
    on_skip: Callable[[str, str], object] = lambda reason, path: None
    on_folder: Callable[[str], object] = lambda path: None
    is_wanted: Callable[[str], bool] = lambda path: True
    files: FileSource = FILES
    skipped: Counter[str] = field(default_factory=Counter, init=False)
    _listed_folders: set[bytes] = field(default_factory=set, init=False)
    _listed_paths: set[bytes] = field(default_factory=set, init=False)

    def __iter__(self) -> Iterator[ListedFile]:
        for path in self.paths:
            if isinstance(path, str):
                yield from self._list_named(path)
            elif path.error:
                yield path
            else:
                yield from (replace(file, columns=path.columns) for file in self._list_named(path.source))

    def _list_named(self, path: str) -> Iterator[ListedFile]:
        try:
            status = self.files.stat(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            is_literal = not isinstance(error, FileNotFoundError) or not is_glob(path)
            if is_literal or self.files.exists(path, follow_links=False):
                yield ListedFile(path, to_media_error(path, error, self.files))
            else:
                yield from self._list_glob(path)
        else:
            yield from self._walk(path, status.is_folder)

    def _list_glob(self, pattern: str) -> Iterator[ListedFile]:
        has_match = False
        for path in expand_glob(pattern, self.files):
            has_match = True
            try:
                is_folder = self.files.stat(path).is_folder
            except OSError:  # for example a broken link: reading it reports the error
                is_folder = False
            yield from self._walk(path, is_folder)
        if has_match:
            self.on_folder(pattern)
        else:
            error = MediaError(
                f"{pattern}: no file matches", "`*` does not match hidden files; `**` matches subfolders"
            )
            yield ListedFile(pattern, error)

    def _walk(self, path: str, is_folder: bool) -> Iterator[ListedFile]:
        """List a file, or all files below a folder."""
        # An explicit stack, not recursion: a tree may be deeper than Python's stack.
        top = (path, self.files.real_path(path), FOLDER_MARK) if is_folder else (path, path, LINK_MARK)
        stack: list[Iterator[MarkedPath]] = [iter([top])]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                continue
            path, real_path, mark = entry
            if self._is_repeat(path, real_path, mark):
                self._skip(REPEAT, path)
            elif mark != FOLDER_MARK and self.is_wanted(path):
                yield ListedFile(path)
            elif mark != FOLDER_MARK:
                self._skip(EXCLUDED, path)
            else:
                entries, error = self._read_folder(path)
                if error:
                    yield ListedFile(path, to_media_error(path, error, self.files))
                if error and not entries:
                    self._listed_paths.add(_digest(real_path))
                else:
                    stack.append(self._list_folder(path, real_path, entries, is_whole=error is None))

    def _read_folder(self, folder: str) -> tuple[list[str], OSError | None]:
        """The names in a folder with their marks, and the error that ended them, if there was one.

        They are sorted, but in the order of the container if they are in one: it is read from front to back.
        """
        names, error_at_end = list[str](), None
        try:
            for entry in self.files.list(folder):
                names.append(f"{entry.name}\0{self._mark(folder, entry)}")
        except OSError as error:
            error_at_end = error
        return names if self.files.is_container(folder) else sorted(names), error_at_end

    def _list_folder(self, folder: str, real_folder: str, names: list[str], is_whole: bool) -> Iterator[MarkedPath]:
        """The images, clips and folders in a folder, by name."""
        # The names are kept in one string, which takes a fraction of the memory of one string for each file.
        for name in names:
            if name[-1] in SKIP_REASONS:
                self._skip(SKIP_REASONS[name[-1]], os.path.join(folder, name[:-2]))
        self._listed_folders.add(_digest(real_folder))
        if is_whole:
            self.on_folder(folder)
        return _split(folder, real_folder, "/".join(name for name in names if name[-1] not in SKIP_REASONS))

    def _is_repeat(self, path: str, real_path: str, mark: str) -> bool:
        """Whether a path was listed before. A named or linked file may also come with the folder that it is in."""
        if mark == LINK_MARK:
            real_path = self.files.real_path(path)
            folder, name = os.path.split(real_path)
            comes_with_folder = _digest(folder) in self._listed_folders and self._is_media(folder, name)
            if comes_with_folder and self.files.exists(real_path):
                return True
        digest = _digest(real_path)
        if digest in self._listed_paths or digest in self._listed_folders:
            return True
        if mark == LINK_MARK:
            self._listed_paths.add(digest)
        return False

    def _mark(self, folder: str, entry: FolderEntry) -> str:
        if entry.is_outside:
            return "u"
        if entry.name.startswith("."):
            return "h"
        if entry.is_folder:
            return "x" if entry.is_link else FOLDER_MARK
        if not self._is_media(folder, entry.name):
            return "o"
        return LINK_MARK if entry.is_link else FILE_MARK

    def _is_media(self, folder: str, name: str) -> bool:
        """Whether a file in a folder is listed with that folder."""
        extension = os.path.splitext(name)[1].lower()
        if self.files.holds_images_only(folder):
            return True
        if name.startswith(".") or extension not in SHARED_EXTENSIONS:
            return not name.startswith(".") and extension in EXTENSIONS
        try:
            with self.files.open(os.path.join(folder, name)) as file:
                header = file.read(HEADER_BYTES)
        except OSError:  # reading the file reports the error
            return True
        return detect_file_type(header) is FileType.LFS or not is_text(header)

    def _skip(self, reason: str, path: str) -> None:
        self.skipped[reason] += 1
        self.on_skip(reason, path)


def _split(folder: str, real_folder: str, names: str) -> Iterator[MarkedPath]:
    start = 0
    while start < len(names):
        end = names.find("/", start)
        end = len(names) if end < 0 else end
        name, mark = names[start : end - 2], names[end - 1]
        yield os.path.join(folder, name), os.path.join(real_folder, name), mark
        start = end + 1


def _digest(real_path: str) -> bytes:
    """Stands for a path in a fraction of its memory."""
    return hashlib.blake2b(os.fsencode(real_path), digest_size=16).digest()

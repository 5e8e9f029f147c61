"""Reads and writes the numbered files of a lease, and says what each operation may rely on among several hosts."""

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# What file systems say that have no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EMLINK}
_NEW = ".new."  # begins the name of a file that is being made


class LeaseFiles:
    """The files `1.json`, `2.json` and so on of a folder, and this machine's clock.

    The server answers `create` and `confirm`. What `list_numbers` and `read` return may be older than what others have
    written since, by up to the time that the file system takes to show it. Nothing is forced to disk: a file that is
    closed has reached the server, and a loss of power ends the holder too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _get_path(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def list_numbers(self) -> list[int]:
        """Lists the numbers of the files, ascending. There are none where the folder is missing."""
        try:
            return sorted(self._list_numbers())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _list_numbers(self) -> Iterator[int]:
        for name in os.listdir(self.folder):
            if name.endswith(".json") and (stem := name[:-5]).isdecimal():
                yield int(stem)

    def read(self, number: int) -> bytes | None:
        """Reads a file. Returns None where it is missing. Raises OSError where it cannot be read."""
        try:
            return self._get_path(number).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:  # it was deleted while it was opened
                return None
            raise

    def create(self, number: int, content: bytes) -> bool:
        """Creates a file with its content in one step. Returns whether it was this call that created it.

        Raises OSError where nothing can be written, with nothing left. Where the file system has no hard links, a kill
        or a full disk in the middle may leave an empty file.
        """
        new, path = self.folder / f"{_NEW}{secrets.token_hex(8)}", self._get_path(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            new.write_bytes(content)
            os.link(new, path)
        except FileExistsError:
            return self.read(number) == content  # NFS: done, but the answer was lost and the question asked again
        except FileNotFoundError:
            return False  # the folder was deleted in between
        except OSError as error:
            if error.errno not in _NO_LINKS or not new.exists():
                raise
            return self._create_in_place(path, content)
        finally:
            new.unlink(missing_ok=True)
        return True

    def _create_in_place(self, path: Path, content: bytes) -> bool:
        """Creates a file without a hard link: its name is there before its content."""
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def confirm(self, number: int, content: bytes) -> bool:
        """Returns whether the file that holds this content is there still, as the server says."""
        try:
            file = os.open(self._get_path(number), os.O_RDWR)
        except OSError:
            return False
        try:
            is_same = os.read(file, len(content) + 1) == content
            os.utime(file)  # asks the server for this very file, whatever its name means by now
            return is_same and os.fstat(file).st_nlink > 0
        except OSError:
            return False
        finally:
            os.close(file)

    def overwrite(self, number: int, content: bytes, may_replace: Callable[[bytes], bool]) -> None:
        """Writes a file that is there anew, in place and of one length, if its content is what may be replaced.

        Raises FileNotFoundError where it is not, or is gone, and OSError where it cannot be written.
        """
        path = self._get_path(number)
        file = os.open(path, os.O_RDWR)
        try:
            if not may_replace(os.read(file, 2 * len(content))):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            os.lseek(file, 0, os.SEEK_SET)
            if os.write(file, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(file)  # what the server has to say of the write it says here

    def remove(self, number: int) -> None:
        """Deletes a file, if it is there and can be deleted."""
        try:
            self._get_path(number).unlink(missing_ok=True)
        except OSError:
            return

    def remove_unfinished(self) -> None:
        """Deletes files that a kill in the middle of `create` has left. A creation that is under way begins anew."""
        for path in self.folder.glob(f"{_NEW}*"):
            path.unlink(missing_ok=True)

    def measure_file_age(self, number: int) -> float | None:
        """Returns about how many seconds ago a file was written, by the clocks of two machines: only to be shown."""
        try:
            return abs(time.time() - self._get_path(number).stat().st_mtime)
        except OSError:
            return None

    def read_clock(self) -> float:
        """Returns seconds of this machine's own clock, which goes on while the machine sleeps."""
        clock = getattr(time, "CLOCK_BOOTTIME", None)
        return time.monotonic() if clock is None else time.clock_gettime(clock)

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)

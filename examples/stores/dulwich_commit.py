"""dulwich: `porcelain.add` and `porcelain.commit` in a Git repository.

Objects are written to `<name>.lock` and renamed into place without a sync, unless the repository
says `core.fsyncObjectFiles`, which by default it does not. The branch is written in the same way
with a sync. So the branch may name a commit whose objects are empty: the content of the branch is
durable first, the objects are not, and no sync of one file is a sync of another. Since no directory
is synced, a commit that has returned may also be gone. Objects come before the branch, so a killed
process leaves at worst objects that nobody needs and a lock.

Expected: atomic and durable only where the page cache survives.
"""

from pathlib import Path

from dulwich import porcelain
from dulwich.objects import Blob, Commit, Tree
from dulwich.repo import Repo

from examples.example import Citation, expect

AUTHOR = b"Ada <ada@example.org>"


def commit(directory: Path, text: str) -> None:
    notes = directory / "repository" / "notes.txt"
    notes.write_text(text)
    with Repo(str(directory / "repository")) as repo:
        porcelain.add(repo, [str(notes)])
        porcelain.commit(
            repo,
            message=text.encode(),
            author=AUTHOR,
            committer=AUTHOR,
            author_timestamp=1_700_000_000,
            commit_timestamp=1_700_000_000,
            author_timezone=0,
            commit_timezone=0,
        )


def setup(directory: Path) -> None:
    (directory / "repository").mkdir()
    porcelain.init(str(directory / "repository")).close()
    commit(directory, "bread")


def workload(directory: Path) -> None:
    commit(directory, "bread and milk")


def recover(directory: Path) -> object:
    with Repo(str(directory / "repository")) as repo:
        head = repo[repo.head()]
        assert isinstance(head, Commit)
        tree = repo[head.tree]
        assert isinstance(tree, Tree)
        mode, number = tree[b"notes.txt"]
        blob = repo[number]
        assert isinstance(blob, Blob)
        return [head.message.decode(), blob.data.decode(), mode]


EXPECTED = expect(atomic=("kill",), durable=("kill",))
CITATIONS = (
    Citation(
        "dulwich",
        "1.2.21",
        "dulwich.object_store",
        1917,
        'fsync_object_files = config.get_boolean((b"core",), b"fsyncObjectFiles", False)',
    ),
    Citation("dulwich", "1.2.21", "dulwich.object_store", 2538, "fsync=self.fsync_object_files,"),
    Citation("dulwich", "1.2.21", "dulwich.refs", 1310, 'with GitFile(filename, "wb") as f:'),
    Citation(
        "dulwich", "1.2.21", "dulwich.file", 432, "os.replace(self._lockfilename, self._filename)"
    ),
)

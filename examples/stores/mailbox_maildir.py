"""`mailbox.Maildir`: one file for each message, written to `tmp`, then linked into `new`.

The message is synced before it gets its final name, and readers never look into `tmp`: whole or not
there. The name in `new` is a change of that directory, and no directory is ever synced, so a mail
server that acknowledges a message after `add` can lose it.

Expected: atomic everywhere; durable only where the page cache survives.
"""

import mailbox
from pathlib import Path

from examples.example import MODELS, Citation, expect


def add(directory: Path, subject: str) -> None:
    box = mailbox.Maildir(directory / "mail")
    box.add(f"Subject: {subject}\n\nDear reader,\nthis is about {subject}.\n")
    box.close()


def setup(directory: Path) -> None:
    add(directory, "bread")


def workload(directory: Path) -> None:
    add(directory, "milk")


def recover(directory: Path) -> object:
    box = mailbox.Maildir(directory / "mail", create=False)
    return sorted([message["subject"], message.get_payload()] for message in box)


EXPECTED = expect(atomic=MODELS, durable=("kill",))
CITATIONS = (
    Citation("python", "3.11.7", "mailbox", 301, "_sync_close(tmp_file)"),
    Citation("python", "3.11.7", "mailbox", 320, "os.link(tmp_file.name, dest)"),
)

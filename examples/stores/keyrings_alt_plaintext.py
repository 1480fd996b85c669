"""keyrings.alt: the plain-text keyring, one INI file for all passwords.

Every `set_password` reads the file, truncates it, and writes all passwords back. A crash in between
costs the passwords of every service, and a password that is not found is `None`, not an error: the
user is asked for it as if it had never been stored.

Expected: atomic nowhere; durable only where the page cache survives.
"""

from pathlib import Path

from keyrings.alt.file import PlaintextKeyring

from examples.example import Citation, expect


def keyring(directory: Path) -> PlaintextKeyring:
    ring = PlaintextKeyring()
    ring.file_path = str(directory / "keyring_pass.cfg")
    return ring


def setup(directory: Path) -> None:
    keyring(directory).set_password("mail", "ada", "secret")


def workload(directory: Path) -> None:
    keyring(directory).set_password("bank", "ada", "more secret")


def recover(directory: Path) -> object:
    ring = keyring(directory)
    return {service: ring.get_password(service, "ada") for service in ("mail", "bank")}


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = (
    Citation(
        "keyrings.alt",
        "5.0.2",
        "keyrings.alt.file_base",
        150,
        "with open(self.file_path, 'w', encoding='utf-8') as config_file:",
    ),
)

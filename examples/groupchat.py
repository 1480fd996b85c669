"""A group chat on the command line: every command a process of its own.

    python examples/groupchat.py --home ~/alice init --name Alice
    python examples/groupchat.py --home ~/alice channel create general
    python examples/groupchat.py --home ~/alice channel invite CHANNEL
    python examples/groupchat.py --home ~/bob init --name Bob
    python examples/groupchat.py --home ~/bob channel join CODE
    python examples/groupchat.py --home ~/bob send CHANNEL "hello"
    python examples/groupchat.py --home ~/alice read CHANNEL
    python examples/groupchat.py --home ~/alice state export alice.backup

What one command saved, the next one has; the log lines on the error stream say what was
saved and loaded. All of it is `pytest_statepersist.reference`: this file only parses and prints.

The state is encrypted with the password in GROUPCHAT_PASSWORD. Without one, a random key is
kept in HOME.key beside the home directory: then whoever can read your files can read your
messages. Exports always need a password, GROUPCHAT_EXPORT_PASSWORD. The members meet in the
directory given by --relay (or GROUPCHAT_RELAY), which sees only encrypted frames.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pytest_statepersist.reference.atomic import make_directory, read_bounded, write_atomic
from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.envelope import KEY_SIZE, EnvelopeKey
from pytest_statepersist.reference.errors import NotFound, PersistenceError, ValidationError
from pytest_statepersist.reference.group_backup import export_state, import_state
from pytest_statepersist.reference.messenger import Channel, Messenger
from pytest_statepersist.reference.transport import DirectoryTransport


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=options.log.upper(), format="%(levelname)s: %(message)s")
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except PersistenceError as error:
        print(f"groupchat: {error}", file=sys.stderr)
        return 1
    return 0


# ---- commands -------------------------------------------------------------------------


def init(options: argparse.Namespace) -> None:
    make_directory(options.home.parent)
    identity = Messenger.init(options.home, options.name, key=own_key(options, create=True))
    print(f"user {identity.user_id}")
    print(f"fingerprint {identity.fingerprint}")


def create(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        print(chat.create_channel(options.name).channel_id)


def list_channels(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        for channel in chat.channels():
            print(described(channel))
            if channel.group is not None:
                for member in channel.group.members:
                    print(f"  {member.name}, since {member.joined_at:%Y-%m-%d %H:%M}")


def invite(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        print(chat.invite(options.channel))


def join(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        print(described(chat.join(options.code)))


def rejoin(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        print(described(chat.rejoin(options.channel)))


def leave(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        chat.leave(options.channel)


def send(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        print(chat.send(options.channel, options.text))


def read(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        report = chat.sync(options.channel)
        for message in chat.history(options.channel):
            print(f"{message.sent_at:%H:%M} {message.author_name}: {message.text}")
        for rejected in report.rejected:
            print(f"groupchat: frame {rejected.position} {rejected.reason}", file=sys.stderr)


def export(options: argparse.Namespace) -> None:
    with messenger(options) as chat:
        export_state(chat, options.file, key=export_key(options))


def import_(options: argparse.Namespace) -> None:
    make_directory(options.home.parent)
    identity = import_state(
        options.home,
        options.file,
        export_key=export_key(options),
        key=own_key(options, create=True),
        replace=options.replace,
    )
    print(f"user {identity.user_id}")


# ---- helpers --------------------------------------------------------------------------


def messenger(options: argparse.Namespace) -> Messenger:
    relay = options.relay or os.environ.get("GROUPCHAT_RELAY") or options.home.parent / "relay"
    transport = DirectoryTransport(relay)
    return Messenger(options.home, key=own_key(options), transport=transport)


def own_key(options: argparse.Namespace, *, create: bool = False) -> EnvelopeKey:
    password = os.environ.get("GROUPCHAT_PASSWORD")
    if password:
        return EnvelopeKey.from_password(password, cost=cost(options))
    path = options.home.with_name(options.home.name + ".key")
    try:
        return EnvelopeKey(read_bounded(path, KEY_SIZE))
    except NotFound:
        if not create:
            raise NotFound(f"{path}: no key; set GROUPCHAT_PASSWORD or run init") from None
        write_atomic(path, secrets.token_bytes(KEY_SIZE))
        return EnvelopeKey(read_bounded(path, KEY_SIZE))


def export_key(options: argparse.Namespace) -> EnvelopeKey:
    password = os.environ.get("GROUPCHAT_EXPORT_PASSWORD")
    if not password:
        raise ValidationError("GROUPCHAT_EXPORT_PASSWORD", "is not set; an export needs one")
    return EnvelopeKey.from_password(password, cost=cost(options))


def cost(options: argparse.Namespace) -> KdfCost:
    return KdfCost(memory_kib=options.kdf_memory_kib)


def described(channel: Channel) -> str:
    if channel.group is None:
        return f"{channel.channel_id}  {channel.name}  DAMAGED: {channel.problem}"
    members = len(channel.group.members)
    return f"{channel.channel_id}  {channel.name}  epoch {channel.group.epoch}, {members} member(s)"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="groupchat", description="A group chat that comes back.")
    top.add_argument("--home", type=Path, default=Path.home() / ".groupchat" / "home")
    top.add_argument("--relay", type=Path, help="the directory in which the members meet")
    top.add_argument("--log", default="info", choices=["debug", "info", "warning", "error"])
    top.add_argument("--kdf-memory-kib", type=int, default=64 << 10, help=argparse.SUPPRESS)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(parent: argparse._SubParsersAction[argparse.ArgumentParser], name: str,
            command: Callable[[argparse.Namespace], None], about: str, *operands: str,
            ) -> argparse.ArgumentParser:  # fmt: skip
        made = parent.add_parser(name, help=about)
        made.set_defaults(command=command)
        for operand in operands:
            made.add_argument(operand)
        return made

    add(commands, "init", init, "set up a new user").add_argument("--name", required=True)
    add(commands, "send", send, "send a message", "channel", "text")
    add(commands, "read", read, "fetch what was missed and show the history", "channel")
    channel = commands.add_parser("channel", help="channels").add_subparsers(required=True)
    add(channel, "create", create, "create a channel", "name")
    add(channel, "list", list_channels, "list channels with their groups")
    add(channel, "invite", invite, "print an invite code, as secret as a key", "channel")
    add(channel, "join", join, "join by an invite code", "code")
    add(channel, "rejoin", rejoin, "join a lost channel again by the saved code", "channel")
    add(channel, "leave", leave, "leave a channel", "channel")
    state = commands.add_parser("state", help="backups").add_subparsers(required=True)
    add(state, "export", export, "write everything to one encrypted file", "file")
    made = add(state, "import", import_, "make this home hold an export", "file")
    made.add_argument("--replace", action="store_true", help="give up what is there")
    return top


if __name__ == "__main__":
    sys.exit(main())

"""Write the golden vaults of `fixtures/vault/`: they must open for ever.

Run once per new format, as ``python tests/reference/make_vault_fixtures.py``; directories that
exist are never written again. The password is ``correct horse é``, the cost is tiny but for the
100,000 iterations that older apps used.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.vault import Category, Vault
from pytest_statepersist.reference.vault_keys import Cost, Pbkdf2Cost

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "vault"
PASSWORD = "correct horse é"
COSTS: dict[str, Cost] = {
    "v1-argon2id": KdfCost(memory_kib=8, iterations=1, lanes=1),
    "v1-pbkdf2-100000": Pbkdf2Cost(100_000),
}


def write(path: Path, cost: Cost) -> None:
    """Create a golden vault."""
    clock = ManualClock(datetime(2025, 1, 1, tzinfo=UTC))
    vault = Vault(path, password=PASSWORD, cost=cost, clock=clock)
    vault.store("health_goal", "Run a marathon", category=Category.HEALTH)
    vault.store("salary_target", 150000)
    vault.store(
        "insight",
        {"insight": "Focus beats multitasking", "ü": [1, None, True]},
        category=Category.KNOWLEDGE,
        tags=["productivity", "2024"],
    )
    path.with_name(path.name + ".lock").unlink()
    (path / "exported-key.txt").write_text(vault.export_key() + "\n")


if __name__ == "__main__":
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, price in COSTS.items():
        if not (FIXTURES / name).exists():
            write(FIXTURES / name, price)
            print(FIXTURES / name)

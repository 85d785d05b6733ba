"""The real alert packets, where they are at hand: not in the repository, because their licences differ."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data(*parts: str) -> Path:
    """A file or folder below ../shared/data; skips the test where it is absent."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data {'/'.join(parts)} is not in ../shared/data")
    return path


def ztf_files() -> list[Path]:
    """The Avro files of real ZTF packets (some hold several)."""
    return sorted(real_data("ztf").glob("**/*.avro"))


def rubin_files() -> list[Path]:
    """Real Rubin messages in Confluent wire form."""
    return sorted(real_data("rubin", "wire").glob("*.bin"))

"""What the cluster's Python needs beside the standard library: the ranges of pyproject.toml, as a test sees to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REQUIREMENTS", "Requirement", "for_cluster"]


@dataclass(frozen=True)
class Requirement:
    """A distribution with the versions that are good: `at_least` <= version < `below`."""

    name: str
    at_least: str
    below: str

    @property
    def specifier(self) -> str:
        """As pip takes it."""
        return f"{self.name}>={self.at_least},<{self.below}"


REQUIREMENTS = (
    Requirement("cloudpickle", "3.0", "4"),
    Requirement("h5py", "3.9", "4"),
    Requirement("numpy", "1.23", "3"),
    Requirement("pysqa", "1.0", "2"),
)


def for_cluster() -> list[dict[str, str]]:
    """For the bootstrap script: what is good, and what to install if nothing good is there.

    cloudpickle is installed in the client's version, the one its pickles come from.
    """
    import cloudpickle

    exact = {"cloudpickle": f"cloudpickle=={cloudpickle.__version__}"}
    return [
        {
            "name": each.name,
            "at_least": each.at_least,
            "below": each.below,
            "install": exact.get(each.name, each.specifier),
        }
        for each in REQUIREMENTS
    ]

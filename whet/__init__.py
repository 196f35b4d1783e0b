"""whet makes a trained network run as fast as the machine it lands on allows."""

from whet.errors import Error

__all__ = ["Error"]

"""The explorer: a page in the browser to see and touch a model with (`vlae explore`)."""

from vlae.explorer.shelf import Shelf
from vlae.explorer.workbench import Workbench

__all__ = ["Shelf", "Workbench"]
